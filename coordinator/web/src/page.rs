//! What every page is wrapped in: self-contained, style inside, no script, nothing fetched.

use maud::{DOCTYPE, Markup, PreEscaped, html};

/// A whole page with this style beside that of all pages.
pub(crate) fn whole(title: &str, style: &str, header: Markup, main: Markup) -> String {
    let page = html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width, initial-scale=1";
                title { (title) }
                style { (PreEscaped(include_str!("report.css"))) (PreEscaped(style)) }
            }
            body {
                header { (header) }
                main { (main) }
            }
        }
    };
    page.into_string()
}
