//! What a person reads when a job ended: a table, a JSON document, one self-contained page.
//!
//! All three are drawn from one [`JobView`]; nothing here computes a score.

mod sweep;
mod table;

use std::path::{Path, PathBuf};

use anyhow::Context as _;
use graftwork_shared::view::JobView;
pub(crate) use table::{METHOD_WIDTH, RESTS, STYLE, bytes, new_table, status_line, table};

/// The JSON document: the view itself.
pub(crate) fn json(view: &JobView) -> anyhow::Result<String> {
    Ok(serde_json::to_string_pretty(view)? + "\n")
}

/// Name of the JSON report in a state folder; its presence says that the job has ended.
pub(crate) const REPORT_JSON: &str = "report.json";

/// Name of the page in a state folder.
pub(crate) const REPORT_HTML: &str = "report.html";

/// Writes the page and the JSON document into the state folder, and the page into the hub; gives the paths, the ones
/// for people first.
pub(crate) fn write(view: &JobView, state: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let page = graftwork_web::report_page(view);
    let in_hub = Path::new(&view.hub).join("reports").join(format!("{}.html", view.id));
    let in_state = state.join(REPORT_HTML);
    let document = state.join(REPORT_JSON);
    for (path, bytes) in [(&in_hub, page.as_bytes()), (&in_state, page.as_bytes())] {
        graftwork_store::write_atomically(path, bytes).with_context(|| format!("writing {}", path.display()))?;
    }
    graftwork_store::write_atomically(&document, json(view)?.as_bytes())?;
    Ok(vec![in_hub, document])
}
