//! The page: one file of HTML with the data, the style and the program that draws, and nothing from
//! anywhere else.

use super::data::{RunData, to_json};

/// By which a file is known as one that may be overwritten.
pub const MARK: &str = "<meta name=\"generator\" content=\"cllm report\">";

const TEMPLATE: &str = include_str!("page/page.html");
const STYLE: &str = include_str!("page/style.css");
/// In the order in which each uses what the ones before it have.
const SCRIPT: [&str; 6] = [
    include_str!("page/base.js"),
    include_str!("page/runs.js"),
    include_str!("page/chart.js"),
    include_str!("page/work.js"),
    include_str!("page/tables.js"),
    include_str!("page/main.js"),
];

/// The page about `runs`. A live one asks its server for `api/runs.json` every other second, which is to
/// say what [`to_json`] does.
#[must_use]
pub fn render(runs: &[RunData], live: bool) -> String {
    let connect = if live { "; connect-src 'self'" } else { "" };
    let names: Vec<_> = runs.iter().map(|run| run.name.as_str()).collect();
    let mut page = String::new();
    // What is put in is not looked at again: it may have anything in it.
    for (n, piece) in TEMPLATE.split("@@").enumerate() {
        match piece {
            _ if n % 2 == 0 => page.push_str(piece),
            "mark" => page.push_str(MARK),
            "policy" => page.push_str(connect),
            "title" => page.push_str(&escaped(&names.join(", "))),
            "live" => page.push_str(if live { "live" } else { "" }),
            "style" => page.push_str(STYLE),
            // Within JSON it can only be in a text; so no text ends the element.
            "data" => page.push_str(&to_json(runs).replace('<', "\\u003c")),
            "script" => page.extend(SCRIPT),
            other => unreachable!("the template asks for {other}"),
        }
    }
    page
}

/// Text for an element or an attribute.
fn escaped(text: &str) -> String {
    let mut safe = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => safe.push_str("&amp;"),
            '<' => safe.push_str("&lt;"),
            '>' => safe.push_str("&gt;"),
            '"' => safe.push_str("&quot;"),
            c => safe.push(c),
        }
    }
    safe
}
