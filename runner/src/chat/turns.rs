//! Which parts of a conversation's text are the assistant's.
//!
//! A template says nothing of that, but what it makes of a conversation up to a reply does:
//!
//! ```text
//! what was said before a reply, with the prompt for it      a prefix of
//! the same with the reply                                   a prefix of
//! the whole conversation
//! ```
//! Between the first and the second is the reply, with what ends it. Some templates write a reply
//! otherwise when more follows it (Qwen3 leaves out thoughts): then each reply is an example of its own,
//! as it was when it was given.
//!
//! A reply that only calls tools is one like any other. Replies that are not to be learnt, as those of a
//! prompt, are of what was said before.

use core::ops::Range;

use super::Dialogue;
use super::message::{ASSISTANT, Message};
use super::template::Compiled;
use crate::error::{Error, Result};

/// Most bytes that templates write of one conversation to tell its replies: it is written thrice for each of them, up
/// to there, so a long one with many would take the square of its length in time and memory. Each message counts as
/// some bytes more.
const WRITTEN: usize = 256 << 20;
const MESSAGE: usize = 256;

/// A text and the parts of it that are the assistant's.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Spoken {
    pub(crate) text: String,
    /// Bytes, in order and apart.
    pub(crate) replies: Vec<Range<usize>>,
}

/// The texts of a conversation; one, unless the template writes replies otherwise when more follows.
///
/// # Errors
/// There is no reply to learn, the template refuses the messages, or writes a reply otherwise than it
/// prompts for one; so many replies in so long a text that they would take too long.
pub(crate) fn spoken(template: &Compiled<'_>, said: &Dialogue) -> Result<Vec<Spoken>> {
    let Dialogue { messages, tools, .. } = said;
    let (mut each, mut written) = (Vec::new(), 0_usize);
    for (i, message) in messages.iter().enumerate() {
        if message.role != ASSISTANT || !message.is_learnt {
            continue;
        }
        let mut render = |messages: &[Message], to_reply| {
            if written > WRITTEN {
                return Err(Error::failure(format!(
                    "{} messages with so many replies in so long a text take too long to tell apart; make \
                     several conversations of it",
                    said.messages.len()
                )));
            }
            let text = template.render(messages, tools, to_reply)?;
            written += text.len() + MESSAGE * messages.len();
            Ok(text)
        };
        let text = render(&messages[..=i], false)?;
        // Templates that prompt for thoughts do not write empty ones: then the reply begins where the
        // message before it ends.
        let mut begin = None;
        for to_reply in [true, false] {
            let before = render(&messages[..i], to_reply)?;
            if begin.is_none() && text.len() > before.len() && text.starts_with(&before) {
                begin = Some(before.len());
            }
        }
        let Some(begin) = begin else {
            return Err(Error::failure(format!(
                "the chat template does not write message {} behind those before it, so the reply \
                 cannot be told from them; give such conversations as prompt and completion",
                i + 1
            )));
        };
        let reply = begin..text.len();
        each.push(Spoken { text, replies: Vec::from([reply]) });
    }
    let Some(last) = each.last() else {
        return Err(Error::failure(
            "no message of the role assistant to learn from; with --loss-on all every token counts",
        ));
    };
    let goes_on = each.windows(2).all(|pair| {
        let (before, after) = (&pair[0], &pair[1]);
        after.text.starts_with(&before.text) && after.replies[0].start >= before.text.len()
    });
    if !goes_on {
        return Ok(each);
    }
    let text = last.text.clone();
    Ok(vec![Spoken { text, replies: each.into_iter().flat_map(|one| one.replies).collect() }])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chat::{Message, Template};
    use crate::tokenizer::usage::Usage;
    use std::path::Path;

    /// As SmolLM2 has it.
    const CHATML: &str = "{% for message in messages %}{% if loop.first and messages[0]['role'] != \
        'system' %}{{ '<|im_start|>system\\nBe brief.<|im_end|>\\n' }}{% endif %}{{'<|im_start|>' + \
        message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n'}}{% endfor %}{% if \
        add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}";

    fn parts(source: &str, conversation: &[(&str, &str)]) -> Result<Vec<(String, Vec<String>)>> {
        let usage = Usage { chat_template: Some(source.to_owned()), ..Usage::default() };
        let template = Template::of(usage, Path::new("there")).unwrap();
        let messages = conversation.iter().map(|(role, content)| Message::new(role, *content));
        let said = Dialogue::of(messages.collect());
        let texts = spoken(&template.compile()?, &said)?;
        Ok(texts
            .into_iter()
            .map(|Spoken { text, replies }| {
                let replies = replies.into_iter().map(|part| text[part].to_owned()).collect();
                (text, replies)
            })
            .collect())
    }

    const TALK: [(&str, &str); 5] = [
        ("user", "Hi"),
        ("assistant", "Hello."),
        ("user", "Who?"),
        ("assistant", "A model."),
        ("user", "Bye"),
    ];

    #[test]
    fn replies_begin_behind_the_prompt_for_them() {
        let texts = parts(CHATML, &TALK).unwrap();
        assert_eq!(texts.len(), 1);
        let (text, replies) = &texts[0];
        assert!(text.starts_with("<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi"));
        assert!(text.ends_with("A model.<|im_end|>\n"), "what follows the last reply is no use");
        assert_eq!(replies[..], ["Hello.<|im_end|>\n", "A model.<|im_end|>\n"]);
    }

    #[test]
    fn replies_that_change_when_more_follows_are_examples_of_their_own() {
        let thinks = "{% for m in messages %}{{ m.role[0] }}:{% if loop.last and m.role == 'assistant' \
            %}<think></think>{% endif %}{{ m.content }};{% endfor %}{% if add_generation_prompt %}a:\
            {% endif %}";
        let texts = parts(thinks, &TALK).unwrap();
        let of = |i: usize| (texts[i].0.as_str(), texts[i].1[0].as_str());
        assert_eq!(of(0), ("u:Hi;a:<think></think>Hello.;", "<think></think>Hello.;"));
        let second = "u:Hi;a:Hello.;u:Who?;a:<think></think>A model.;";
        assert_eq!(of(1), (second, "<think></think>A model.;"));
        assert_eq!(texts.len(), 2);
        // It prompts for what it does not write.
        let prompts = "{% for m in messages %}{{ m.role[0] }}:{{ m.content }};{% endfor %}{% if \
            add_generation_prompt %}a:<think>{% endif %}";
        assert_eq!(parts(prompts, &TALK).unwrap()[0].1, ["a:Hello.;", "a:A model.;"]);
    }

    #[test]
    fn a_long_conversation_of_many_replies_has_an_end() {
        let long = "x".repeat(1 << 14);
        let talk: Vec<_> = (0..200).map(|_| ("assistant", long.as_str())).collect();
        let error = parts(CHATML, &talk).unwrap_err().to_string();
        assert!(
            error.contains("200 messages") && error.contains("several conversations"),
            "{error}"
        );
        let short: Vec<_> = (0..100).map(|_| ("assistant", "yes")).collect();
        assert_eq!(parts(CHATML, &short).unwrap()[0].1.len(), 100);
    }

    #[test]
    fn what_cannot_be_told_apart_is_refused() {
        let refused =
            |source: &str, talk: &[(&str, &str)]| parts(source, talk).unwrap_err().to_string();
        assert!(refused(CHATML, &TALK[..1]).contains("no message of the role assistant"));
        let backwards = "{% for m in messages | reverse %}{{ m.content }};{% endfor %}";
        let error = refused(backwards, &TALK);
        assert!(error.contains("does not write message 2") && error.contains("prompt"), "{error}");
        let roles = "{{ raise_exception('Roles must alternate') }}";
        assert!(refused(roles, &TALK).contains("Roles must alternate"));
    }
}
