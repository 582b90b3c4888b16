//! What methods and filters of texts cost beyond what they are given, paid for before they begin. The library pays for
//! what comes of them when it is there: a text of as many places as a number says would have taken the memory by then.

use std::borrow::Cow;

use minijinja::value::StringInput;
use minijinja::{Error, State, Value, filters};

use super::weighed;

/// Bytes, or comparisons of two characters, that a step of the template pays for.
const BYTES: u64 = 64;
const COMPARISONS: u64 = 4096;
/// Most bytes that a character of a value takes when it is written, escaped, and one that fills a place.
const ESCAPED: u64 = 6;
const FILL: u64 = 4;

/// Takes of a template's steps what a method is worth.
///
/// # Errors
/// There are not as many steps left.
pub(super) fn pay(
    state: &State<'_, '_>,
    of: &Value,
    method: &str,
    given: &[Value],
) -> Result<(), Error> {
    let bytes = weighed::pay(state, of, given)?;
    let Some(text) = of.as_str() else { return Ok(()) };
    match method {
        "strip" | "lstrip" | "rstrip" => {
            trimmed(state, text, given.first().and_then(Value::as_str))
        }
        "format" => formatted(state, text, bytes as u64),
        _ => Ok(()),
    }
}

/// The filter `trim`, which compares each character with all of those that it is given.
///
/// # Errors
/// There are not as many steps left.
pub(super) fn trim(
    state: &mut State<'_, '_>,
    text: StringInput<'_>,
    these: Option<Cow<'_, str>>,
) -> Result<Value, Error> {
    trimmed(state, text.as_str(), these.as_deref())?;
    Ok(filters::trim(text, these))
}

fn trimmed(state: &State<'_, '_>, text: &str, these: Option<&str>) -> Result<(), Error> {
    let comparisons = (text.len() as u64).saturating_mul(these.map_or(0, str::len) as u64);
    state.consume_fuel(comparisons / COMPARISONS)
}

/// Each field may be all that is given, in the most places that the text has a number for.
fn formatted(state: &State<'_, '_>, text: &str, given: u64) -> Result<(), Error> {
    let fields = text.matches('{').count() as u64;
    let each = (FILL.saturating_mul(widest(text))).saturating_add(ESCAPED.saturating_mul(given));
    let all = fields.saturating_mul(each).saturating_add(text.len() as u64);
    state.consume_fuel(all / BYTES)
}

/// The largest number in a text.
fn widest(text: &str) -> u64 {
    let mut most = 0;
    for digits in text.split(|c: char| !c.is_ascii_digit()).filter(|digits| !digits.is_empty()) {
        most = most.max(digits.parse().unwrap_or(u64::MAX));
    }
    most
}

#[cfg(test)]
mod tests {
    use crate::chat::Message;
    use crate::chat::template::rendered;
    use core::time::Duration;
    use std::time::Instant;

    fn render(source: &str) -> Result<String, String> {
        rendered(source, &[Message::new("user", " Hi ")])
    }

    #[test]
    fn places_are_not_made_before_they_are_paid_for() {
        let many = "{% set a = 'a' * 900000 %}{{ ('{0}' * 600).format(a) | length }}";
        for source in [
            "{{ '{:1000000000}'.format(1) }}",
            "{{ '{:99999999999999}'.format(1) }}",
            "{{ '{:18446744073709551615}'.format(1) }}",
            "{{ '{:99999999999999999999999999}'.format(1) }}",
            "{{ '{:\u{e9}>9223372036854775807}'.format('x') }}",
            "{{ '{:.1000000000f}'.format(1.5) }}",
            "{{ '{:01000000000,}'.format(7) }}",
            "{{ '{0:1000000000}{0:1000000000}'.format(messages) }}",
            many,
        ] {
            let error = render(source).map(|made| made.len()).unwrap_err();
            assert!(error.contains("out of fuel"), "{source}: {error}");
        }
    }

    #[test]
    fn all_of_a_text_is_not_compared_with_all_of_another() {
        let texts = "{% set a = 'a' * 900000 ~ 'b' %}{% set b = 'b' * 900000 %}";
        for call in [
            "b.strip(a)",
            "b.lstrip(a)",
            "b.rstrip(a)",
            "b | trim(a)",
            "[b] | map('trim', a) | list",
        ] {
            let begin = Instant::now();
            let error =
                render(&format!("{texts}{{{{ {call} }}}}")).map(|made| made.len()).unwrap_err();
            assert!(error.contains("out of fuel"), "{call}: {error}");
            assert!(begin.elapsed() < Duration::from_secs(10), "{call}: {:?}", begin.elapsed());
        }
    }

    #[test]
    fn what_people_write_is_as_before() {
        for (source, text) in [
            ("{{ messages[0].content.strip() }}{{ messages[0].content | trim }}", "HiHi"),
            ("{{ 'xxaxx'.strip('x') }}{{ 'xya'.lstrip('yx') }}{{ 'a..'.rstrip('.') }}", "aaa"),
            ("{{ 'xxaxx' | trim('x') }}{{ [' a '] | map('trim') | join }}", "aa"),
            ("{{ '{}: {:>5}|{:05.1f}'.format('a', 'b', 2.25) }}", "a:     b|002.2"),
            ("{{ '{0} {0} {x}'.format(messages[0].role, x=12) }}", "user user 12"),
            ("{{ ('a ' * 20000).strip() | length }}", "39999"),
        ] {
            assert_eq!(render(source).as_deref(), Ok(text), "{source}");
        }
    }
}
