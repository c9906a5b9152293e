//! What a head's logits say, and how it is printed: data to stdout, one answer a row, in the rows' order.

use std::io::Write;

use graftwork_shared::{
    head::{Head, HeadOutput},
    id::Name,
};
use serde::Serialize;

/// Form of the output.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum OutputForm {
    /// One JSON array.
    Json,
    /// One JSON object a line.
    Jsonl,
    /// Tab-separated, for people and shells: row, head, label or value, probability.
    Text,
}

/// All that is said about one row.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct Answer {
    /// The row, from 0.
    pub(crate) row: u64,
    /// One for each head that saw the row.
    pub(crate) predictions: Vec<HeadAnswer>,
}

/// What one head says.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct HeadAnswer {
    /// The head.
    head: Name,
    #[serde(flatten)]
    says: Says,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(untagged)]
enum Says {
    Class { label: String, probabilities: serde_json::Map<String, serde_json::Value> },
    Value { value: f64 },
}

impl HeadAnswer {
    /// Reads one row of logits, as many as the head has outputs.
    pub(crate) fn new(name: &Name, head: &Head, logits: &[f32]) -> Self {
        let says = match &head.output {
            HeadOutput::Regression => Says::Value { value: logits.first().copied().map_or(f64::NAN, f64::from) },
            HeadOutput::Classification { labels } => {
                let probabilities = softmax(logits);
                let best = graftwork_engine::largest(logits) as usize;
                let pairs = labels.iter().cloned().zip(probabilities.iter().map(|&value| value.into()));
                Says::Class { label: labels.get(best).cloned().unwrap_or_default(), probabilities: pairs.collect() }
            }
        };
        Self { head: name.clone(), says }
    }

    fn line(&self, row: u64) -> String {
        match &self.says {
            Says::Value { value } => format!("{row}\t{}\t{value:.6}\n", self.head),
            Says::Class { label, probabilities } => {
                let probability = probabilities.get(label).and_then(serde_json::Value::as_f64).unwrap_or(f64::NAN);
                format!("{row}\t{}\t{label}\t{probability:.6}\n", self.head)
            }
        }
    }
}

/// Probabilities of logits: `exp(x - max) / Σ exp(x - max)`, in double precision.
fn softmax(logits: &[f32]) -> Vec<f64> {
    let largest = logits.iter().copied().map(f64::from).fold(f64::NEG_INFINITY, f64::max);
    let powers: Vec<f64> = logits.iter().map(|&logit| (f64::from(logit) - largest).exp()).collect();
    let sum: f64 = powers.iter().sum();
    powers.iter().map(|power| power / sum).collect()
}

/// Writes answers as they come.
#[derive(Debug)]
pub(crate) struct Printer<W> {
    out: W,
    form: OutputForm,
    printed: u64,
}

impl<W: Write> Printer<W> {
    /// Nothing is written yet.
    pub(crate) fn new(out: W, form: OutputForm) -> Self {
        Self { out, form, printed: 0 }
    }

    /// Writes one answer.
    pub(crate) fn print(&mut self, answer: &Answer) -> std::io::Result<()> {
        match self.form {
            OutputForm::Text => {
                for head in &answer.predictions {
                    self.out.write_all(head.line(answer.row).as_bytes())?;
                }
            }
            OutputForm::Jsonl => {
                serde_json::to_writer(&mut self.out, answer)?;
                self.out.write_all(b"\n")?;
            }
            OutputForm::Json => {
                self.out.write_all(if self.printed == 0 { b"[\n" } else { b",\n" })?;
                serde_json::to_writer(&mut self.out, answer)?;
            }
        }
        self.printed += 1;
        Ok(())
    }

    /// Ends the output.
    pub(crate) fn finish(mut self) -> std::io::Result<()> {
        if self.form == OutputForm::Json {
            self.out.write_all(if self.printed == 0 { b"[]\n" } else { b"\n]\n" })?;
        }
        self.out.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answers(form: OutputForm) -> String {
        let labels = vec!["ham".to_owned(), "spam".to_owned()];
        let classes = Head::new(HeadOutput::Classification { labels });
        let number = Head::new(HeadOutput::Regression);
        let (a, b): (Name, Name) = ("a".parse().unwrap(), "b".parse().unwrap());
        let answer = |row, logit| Answer {
            row,
            predictions: vec![
                HeadAnswer::new(&a, &classes, &[0.0, logit]),
                HeadAnswer::new(&b, &number, &[logit / 2.0]),
            ],
        };
        let mut bytes = Vec::new();
        let mut printer = Printer::new(&mut bytes, form);
        printer.print(&answer(0, 1.0)).unwrap();
        printer.print(&answer(1, -80.0)).unwrap();
        printer.finish().unwrap();
        String::from_utf8(bytes).unwrap()
    }

    #[test]
    fn probabilities_are_those_of_a_softmax() {
        let sum: f64 = softmax(&[1.0, 2.0, 3.0]).iter().sum();
        assert!((sum - 1.0).abs() < 1e-12);
        assert!((softmax(&[1000.0, 1000.0])[0] - 0.5).abs() < 1e-12);
        let lines = answers(OutputForm::Text);
        assert_eq!(lines.lines().next().unwrap(), "0\ta\tspam\t0.731059");
        assert_eq!(lines.lines().nth(2).unwrap(), "1\ta\tham\t1.000000");
        assert_eq!(lines.lines().nth(3).unwrap(), "1\tb\t-40.000000");
    }

    #[test]
    fn json_is_one_document_and_json_lines_are_many() {
        let one: Vec<serde_json::Value> = serde_json::from_str(&answers(OutputForm::Json)).unwrap();
        let many: Vec<serde_json::Value> =
            answers(OutputForm::Jsonl).lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert_eq!(one, many);
        assert_eq!(one[0]["predictions"][0]["label"], "spam");
        assert_eq!(one[0]["predictions"][1]["value"], 0.5);
        let mut empty = Vec::new();
        Printer::new(&mut empty, OutputForm::Json).finish().unwrap();
        assert_eq!(empty, b"[]\n");
    }
}
