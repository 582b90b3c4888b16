//! What published templates do with tools: the texts that Jinja makes of the same, set up as `transformers`
//! does it (`tests/golden/make_templates.py`).

use std::fs;
use std::path::{Path, PathBuf};

use super::turns::{Spoken, spoken};
use super::{Dialogue, Template};
use crate::json::Ordered;
use crate::tokenizer::usage::Usage;

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden/templates").join(name)
}

fn template(name: &str) -> Template {
    let text = |text: &str| Some(text.to_owned());
    let chat_template = Some(fs::read_to_string(golden(&format!("{name}.jinja"))).unwrap());
    let usage = Usage {
        chat_template,
        bos_token: text("<s>"),
        eos_token: text("</s>"),
        ..Usage::default()
    };
    Template::of(usage, Path::new("there")).unwrap()
}

/// `objects` or `texts`, and the cases.
fn all() -> Ordered {
    serde_json::from_str(&fs::read_to_string(golden("cases.json")).unwrap()).unwrap()
}

fn items<'v>(value: &'v Ordered, name: &str) -> &'v [Ordered] {
    let Some(Ordered::List(items)) = value.get(name) else { panic!("no {name}") };
    items
}

fn text<'v>(value: &'v Ordered, name: &str) -> &'v str {
    let Some(Ordered::Text(text)) = value.get(name) else { panic!("no {name}") };
    text
}

#[test]
fn conversations_with_tools_become_the_texts_that_transformers_makes() {
    let all = all();
    for case in items(&all, "cases") {
        let name = text(case, "template");
        let Some(Ordered::Number(messages)) = case.get("messages") else { panic!("{case:?}") };
        let messages = messages.as_u64().unwrap() as usize;
        let to_reply = case.get("to_reply") == Some(&Ordered::Bool(true));
        for given in ["objects", "texts"] {
            // What is a text there has its own spaces.
            if name == "arguments_as_text" && given == "objects" && messages > 2 {
                continue;
            }
            let mut said = Dialogue::default();
            said.hear(&items(&all, given)[..messages], false).unwrap();
            if let Some(tools) = case.given("tools") {
                said.equip(tools).unwrap();
            }
            let template = template(name);
            let made = template.compile().unwrap().render(&said.messages, &said.tools, to_reply);
            assert_eq!(made.as_deref(), Ok(text(case, "expected")), "{name} {given}");
        }
    }
}

#[test]
fn calls_are_replies() {
    let all = all();
    for (name, call) in [
        (
            "tools_to_the_system",
            "<tool_call>\n{\"name\": \"weather\", \"arguments\": {\"place\": \"Rome <é>\", \"days\": [2, {\"n\": true}], \
             \"a\": {}}}\n</tool_call><|im_end|>\n",
        ),
        (
            "tools_to_the_user",
            "{\"name\": \"weather\", \"parameters\": {\"place\": \"Rome <é>\", \"days\": [2, {\"n\": true}], \"a\": \
             {}}}<|eot|>",
        ),
    ] {
        let mut said = Dialogue::default();
        said.hear(items(&all, "texts"), false).unwrap();
        said.equip(items(&all, "cases").iter().find_map(|case| case.given("tools")).unwrap())
            .unwrap();
        let template = template(name);
        let made = spoken(&template.compile().unwrap(), &said).unwrap();
        let [Spoken { text, replies }] = &made[..] else { panic!("{name}: {made:?}") };
        assert_eq!(replies.len(), 2, "{name}");
        assert_eq!(&text[replies[0].clone()], call, "{name}");
        assert!(text[replies[1].clone()].starts_with("It is."), "{name}");
    }
}

#[test]
fn what_a_template_says_of_tools_that_it_cannot_write_is_told() {
    let all = all();
    let mut said = Dialogue::default();
    said.hear(&items(&all, "texts")[2..3], false).unwrap();
    let of = |source: &str| {
        let usage = Usage { chat_template: Some(source.to_owned()), ..Usage::default() };
        let template = Template::of(usage, Path::new("there")).unwrap();
        let made = template.compile().unwrap().render(&said.messages, &[], false);
        made.map_err(|error| error.to_string())
    };
    // Refused with objects and with texts: the first of the two is told.
    let source = "{{ raise_exception('no ' ~ ('text' if messages[0].tool_calls[0].function.arguments is \
                  string else 'object')) }}";
    assert!(of(source).unwrap_err().contains("no object"));
    let error = of("{{ 'a' + messages[0].content }}").unwrap_err();
    assert!(error.contains("there: the chat template"), "{error}");
    assert_eq!(of("{{ tools is none }}{{ documents is none }}").as_deref(), Ok("TrueTrue"));
}
