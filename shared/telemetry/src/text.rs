//! Numbers as OpenMetrics text, made anew for each scrape.

use std::sync::atomic::AtomicU64;

use prometheus_client::{
    encoding::text::encode,
    metrics::{counter::Counter, family::Family, gauge::Gauge},
    registry::Registry,
};

type Labels = Vec<(&'static str, String)>;

/// What one scrape shows.
#[derive(Debug, Default)]
pub struct Exposition(Registry);

impl Exposition {
    /// Without any number yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// A number that goes up and down.
    pub fn gauge(&mut self, name: &str, help: &str, value: f64) {
        self.gauges(name, help, [(Vec::new(), value)]);
    }

    /// The same by labels.
    pub fn gauges(&mut self, name: &str, help: &str, rows: impl IntoIterator<Item = (Labels, f64)>) {
        let family = Family::<Labels, Gauge<f64, AtomicU64>>::default();
        for (labels, value) in rows {
            family.get_or_create(&labels).set(value);
        }
        self.0.register(name, help.trim_end_matches('.'), family);
    }

    /// A number that grows until the process ends; `_total` is added to its name.
    pub fn counter(&mut self, name: &str, help: &str, value: f64) {
        self.counters(name, help, [(Vec::new(), value)]);
    }

    /// The same by labels.
    pub fn counters(&mut self, name: &str, help: &str, rows: impl IntoIterator<Item = (Labels, f64)>) {
        let family = Family::<Labels, Counter<f64, AtomicU64>>::default();
        for (labels, value) in rows {
            family.get_or_create(&labels).inc_by(value.max(0.0));
        }
        self.0.register(name, help.trim_end_matches('.'), family);
    }

    /// The text.
    pub fn text(self) -> String {
        let mut text = String::new();
        // A String takes whatever is written to it.
        let _ = encode(&mut text, &self.0);
        text
    }
}

/// How the text is called.
pub(crate) const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_written_with_their_labels_and_an_end() {
        let mut text = Exposition::new();
        text.gauge("graftwork_workers", "Workers.", 3.0);
        text.counters("graftwork_losses", "Lost.", [(vec![("kind", "a \"b\"".to_owned())], 2.0)]);
        let text = text.text();
        for line in [
            "# TYPE graftwork_workers gauge",
            "graftwork_workers 3.0",
            "# TYPE graftwork_losses counter",
            "graftwork_losses_total{kind=\"a \\\"b\\\"\"} 2.0",
        ] {
            assert!(text.lines().any(|found| found == line), "{line}: {text}");
        }
        assert!(text.ends_with("# EOF\n"));
    }
}
