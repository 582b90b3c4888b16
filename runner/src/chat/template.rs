//! Chat templates: where they are kept, and texts of messages.
//!
//! Templates are Jinja as `transformers` runs it: blocks take the line break behind them along, texts
//! have Python's methods, and `raise_exception` refuses messages in the template's words.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use minijinja::syntax::SyntaxConfig;
use minijinja::{Environment, ErrorKind as JinjaError, Value as Jinja, context};
use serde_json::{Map, Value, json};

use super::Message;
use crate::error::{Error, Result};
use crate::tokenizer::CONFIG_FILE_NAME as FILE_NAME;

/// File that newer versions of `transformers` put the template into.
const TEMPLATE_FILE: &str = "chat_template.jinja";
/// Most steps of a template: thousands of messages take a few hundred thousand.
const FUEL: u64 = 50_000_000;

/// A chat template and the names of the tokens that it may mention.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Template {
    /// The template.
    pub source: String,
    /// The token that every text begins with, if there is one.
    pub bos_token: Option<String>,
    /// The token that ends a text or a reply.
    pub eos_token: Option<String>,
    /// Where it was found, for errors.
    origin: PathBuf,
}

impl Template {
    /// A template from another place than a folder.
    #[must_use]
    pub fn new(
        source: String,
        bos_token: Option<String>,
        eos_token: Option<String>,
        origin: &Path,
    ) -> Self {
        Self { source, bos_token, eos_token, origin: origin.to_path_buf() }
    }

    /// The template of a folder of a model; `None` if it has none.
    ///
    /// # Errors
    /// Names the file that cannot be read or is damaged.
    pub fn of_folder(dir: &Path) -> Result<Option<Self>> {
        let path = dir.join(FILE_NAME);
        let config = match read(&path)? {
            Some(text) => serde_json::from_str(&text)
                .map_err(|e| Error::failure(format!("{}: {e}", path.display())))?,
            None => Value::Null,
        };
        let token = |name: &str| {
            let token = &config[name];
            token.as_str().or(token["content"].as_str()).map(str::to_owned)
        };
        let own = dir.join(TEMPLATE_FILE);
        let (source, origin) = match read(&own)? {
            Some(source) => (Some(source), own),
            None => (of_config(&config["chat_template"]).map(str::to_owned), path),
        };
        let (bos, eos) = (token("bos_token"), token("eos_token"));
        Ok(source.map(|source| Self::new(source, bos, eos, &origin)))
    }

    /// The file that [`Template::of_folder`] reads it from again.
    #[must_use]
    pub fn to_json(&self) -> String {
        let mut all = Map::new();
        let tokens = [("bos_token", &self.bos_token), ("eos_token", &self.eos_token)];
        for (name, token) in tokens {
            if let Some(token) = token {
                all.insert(name.to_owned(), json!(token));
            }
        }
        all.insert("chat_template".to_owned(), json!(self.source));
        format!("{:#}\n", Value::Object(all))
    }

    /// The text of a conversation, `to_reply` with the beginning of the assistant's next message.
    ///
    /// # Errors
    /// The template is damaged, does without what it wants, or refuses the messages.
    pub fn render(&self, messages: &[Message], to_reply: bool) -> Result<String> {
        let mut jinja = Environment::new();
        let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build();
        jinja.set_syntax(syntax.map_err(|e| Error::failure(format!("chat templates: {e}")))?);
        jinja.set_fuel(Some(FUEL));
        jinja.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        jinja.add_function("raise_exception", |text: String| -> core::result::Result<(), _> {
            Err(minijinja::Error::new(JinjaError::InvalidOperation, text))
        });
        let messages: Vec<_> = messages
            .iter()
            .map(|Message { role, content }| {
                Jinja::from_pairs([("role", role.as_str()), ("content", content.as_str())])
            })
            .collect();
        let rendered = jinja.render_str(
            &self.source,
            context! {
                messages => messages,
                add_generation_prompt => to_reply,
                bos_token => self.bos_token.as_deref().unwrap_or_default(),
                eos_token => self.eos_token.as_deref().unwrap_or_default(),
            },
        );
        rendered.map_err(|e| {
            Error::failure(format!("{}: the chat template: {e}", self.origin.display()))
        })
    }
}

/// A file's text; `None` if it is not there.
fn read(path: &Path) -> Result<Option<String>> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(cause) if cause.kind() == ErrorKind::NotFound => Ok(None),
        Err(cause) => Err(Error::io("read", path, &cause)),
    }
}

/// One template, or of several named ones the usual one.
fn of_config(value: &Value) -> Option<&str> {
    let named = |name: &str| {
        let all = value.as_array()?.iter();
        all.filter(|one| one["name"] == name).find_map(|one| one["template"].as_str())
    };
    value.as_str().or_else(|| named("default"))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As SmolLM2 has it, with line breaks as people write them.
    const CHATML: &str = "{% for message in messages %}\n\
        {% if loop.first and messages[0]['role'] != 'system' %}\n\
        {{ '<|im_start|>system\\nBe brief.<|im_end|>\\n' }}\n\
        {% endif %}\n\
        {{ '<|im_start|>' + message['role'] + '\\n' + message['content'].strip() + '<|im_end|>' }}\n\
        {% endfor %}\n\
        {% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}\n";

    fn template(source: &str) -> Template {
        let token = |name: &str| Some(name.to_owned());
        Template::new(source.to_owned(), token("<s>"), token("</s>"), Path::new("there"))
    }

    #[test]
    fn messages_become_the_text_that_transformers_makes() {
        let messages = [Message::new("user", " Hi \n"), Message::new("assistant", "Hello.")];
        let text = template(CHATML).render(&messages, true).unwrap();
        let expected = "<|im_start|>system\nBe brief.<|im_end|>\n\n\
            <|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nHello.<|im_end|>\n\
            <|im_start|>assistant\n";
        assert_eq!(text, expected);
        let tokens = template("{{ bos_token }}{{ messages | tojson }}{{ eos_token }}");
        let text = tokens.render(&messages[1..], false).unwrap();
        // As Python writes it.
        assert_eq!(text, "<s>[{\"role\": \"assistant\", \"content\": \"Hello.\"}]</s>");
    }

    #[test]
    fn what_a_template_refuses_and_what_is_damaged_is_told() {
        let refused = |source: &str| {
            let messages = [Message::new("user", "Hi")];
            template(source).render(&messages, true).unwrap_err().to_string()
        };
        let error = refused("{{ raise_exception('Roles must alternate') }}");
        assert!(
            error.contains("there: the chat template") && error.contains("Roles must"),
            "{error}"
        );
        assert!(refused("{% for x in %}").contains("there: the chat template"));
        assert!(refused("{{ messages[0].foo() }}").contains("foo"));
        // Nothing runs for ever.
        let forever =
            "{% for a in range(9999) %}{% for b in range(99999) %}{{ b }}{% endfor %}{% endfor %}";
        assert!(refused(forever).contains("fuel"));
    }

    #[test]
    fn folders_have_templates_in_either_file() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(Template::of_folder(dir.path()), Ok(None));
        let put = |name: &str, text: &str| fs::write(dir.path().join(name), text).unwrap();
        put(FILE_NAME, &template(CHATML).to_json());
        let found = Template::of_folder(dir.path()).unwrap().unwrap();
        assert_eq!((found.source.as_str(), found.bos_token.as_deref()), (CHATML, Some("<s>")));
        // As transformers writes tokens and several templates.
        put(
            FILE_NAME,
            r#"{"eos_token": {"content": "</s>"}, "bos_token": null,
                "chat_template": [{"name": "tool", "template": "t"}, {"name": "default", "template": "d"}]}"#,
        );
        let found = Template::of_folder(dir.path()).unwrap().unwrap();
        assert_eq!((found.source.as_str(), found.bos_token), ("d", None));
        assert_eq!(found.eos_token.as_deref(), Some("</s>"));
        put(TEMPLATE_FILE, "own");
        assert_eq!(Template::of_folder(dir.path()).unwrap().unwrap().source, "own");
        put(FILE_NAME, "{");
        assert!(Template::of_folder(dir.path()).unwrap_err().to_string().contains(FILE_NAME));
    }
}
