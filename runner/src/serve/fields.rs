//! Reading the parameters of a request: each by its name, with its type and its range.

use core::fmt::Display;
use core::ops::RangeInclusive;
use std::collections::BTreeMap;

use serde_json::Value;

use super::problem::Problem;
use crate::cli::nearest::nearest;
use crate::json::Ordered;

/// Parameters that change nothing here: who asks, what is kept of it, how hard to think.
const IGNORED: [&str; 11] = [
    "user",
    "metadata",
    "store",
    "service_tier",
    "safety_identifier",
    "prompt_cache_key",
    "prompt_cache_retention",
    "parallel_tool_calls",
    "reasoning_effort",
    "verbosity",
    "cache_prompt",
];

/// The parameters that were not read yet.
pub(super) struct Fields {
    left: BTreeMap<String, Ordered>,
    known: Vec<&'static str>,
}

impl Fields {
    /// The parameters in the body of a request.
    ///
    /// # Errors
    /// It is not JSON (with the place), or no object.
    pub(super) fn of(body: &[u8]) -> Result<Self, Problem> {
        let value: Ordered = serde_json::from_slice(body)
            .map_err(|e| Problem::bad(format!("the body is not JSON: {e}")))?;
        match value {
            Ordered::Object(left) => {
                Ok(Self { left: left.into_iter().collect(), known: Vec::new() })
            }
            other => Err(Problem::bad(format!("the body is {}, not a JSON object", other.kind()))),
        }
    }

    /// Takes a parameter; null is as good as none.
    pub(super) fn take(&mut self, name: &'static str) -> Option<Value> {
        self.take_ordered(name).map(Ordered::sorted)
    }

    /// Takes a parameter whose objects have their fields in the order of the body.
    pub(super) fn take_ordered(&mut self, name: &'static str) -> Option<Ordered> {
        self.known.push(name);
        self.left.remove(name).filter(|value| *value != Ordered::Null)
    }

    /// Takes a number in `range`.
    pub(super) fn number(
        &mut self,
        name: &'static str,
        range: RangeInclusive<f32>,
    ) -> Result<Option<f32>, Problem> {
        let Some(value) = self.take(name) else { return Ok(None) };
        let number = value.as_f64().ok_or_else(|| wrong(name, "a number", &value))? as f32;
        if !range.contains(&number) || !number.is_finite() {
            return Err(out_of_range(name, &value, &range));
        }
        Ok(Some(number))
    }

    /// Takes a whole number in `range`.
    pub(super) fn whole(
        &mut self,
        name: &'static str,
        range: RangeInclusive<usize>,
    ) -> Result<Option<usize>, Problem> {
        let Some(value) = self.take(name) else { return Ok(None) };
        if !value.is_u64() && !value.is_i64() {
            return Err(wrong(name, "a whole number", &value));
        }
        let whole = value.as_u64().and_then(|whole| usize::try_from(whole).ok());
        match whole.filter(|whole| range.contains(whole)) {
            Some(whole) => Ok(Some(whole)),
            None => Err(out_of_range(name, &value, &range)),
        }
    }

    /// Takes a truth; false if there is none.
    pub(super) fn truth(&mut self, name: &'static str) -> Result<bool, Problem> {
        match self.take(name) {
            None => Ok(false),
            Some(value) => value.as_bool().ok_or_else(|| wrong(name, "true or false", &value)),
        }
    }

    /// Takes a text.
    pub(super) fn text(&mut self, name: &'static str) -> Result<Option<String>, Problem> {
        match self.take(name) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(other) => Err(wrong(name, "a text", &other)),
        }
    }

    /// Takes a parameter of which only the values that change nothing are accepted.
    pub(super) fn only(
        &mut self,
        name: &'static str,
        accepted: &[Value],
        why: &str,
    ) -> Result<(), Problem> {
        match self.take(name) {
            Some(value) if !accepted.contains(&value) => Err(Problem::param(name, why)),
            _ => Ok(()),
        }
    }

    /// Refuses what is left: a misspelt name would be a setting that silently is not there.
    pub(super) fn end(self) -> Result<(), Problem> {
        let mut unknown = self.left.keys().filter(|name| !IGNORED.contains(&name.as_str()));
        let Some(name) = unknown.next() else { return Ok(()) };
        let shown: String = name.chars().take(60).collect();
        let message = match nearest(name, self.known.iter().copied()) {
            Some(meant) => format!("no such parameter: did you mean {meant}?"),
            None => "no such parameter".to_owned(),
        };
        Err(Problem::param(&shown, message))
    }
}

/// A value of the wrong type.
pub(super) fn wrong(name: &str, expected: &str, got: &Value) -> Problem {
    Problem::param(name, format_args!("expected {expected}, not {}", kind(got)))
}

fn out_of_range<T: Display>(name: &str, value: &Value, range: &RangeInclusive<T>) -> Problem {
    let (least, most) = (range.start(), range.end());
    Problem::param(name, format_args!("{value} is out of range: it must be from {least} to {most}"))
}

/// What a value is.
fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "true or false",
        Value::Number(number) if number.is_f64() => "a number with a fraction",
        Value::Number(_) => "a number",
        Value::String(_) => "a text",
        Value::Array(_) => "an array",
        Value::Object(_) => "an object",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fields(text: &str) -> Fields {
        Fields::of(text.as_bytes()).unwrap_or_else(|e| panic!("{e:?}"))
    }

    fn told<T: core::fmt::Debug>(result: Result<T, Problem>) -> String {
        result.unwrap_err().json()["error"]["message"].as_str().unwrap().to_owned()
    }

    #[test]
    fn what_is_no_object_is_refused_with_the_place() {
        let refused = |text: &str| told(Fields::of(text.as_bytes()).map(|_| ()));
        assert!(
            refused("{\n  \"a\": }").contains("line 2 column 8"),
            "{}",
            refused("{\n  \"a\": }")
        );
        assert_eq!(refused("[1]"), "the body is an array, not a JSON object");
        assert!(refused(&"[".repeat(100_000)).contains("recursion limit"));
        assert!(refused("").contains("not JSON"));
    }

    #[test]
    fn values_have_types_and_ranges() {
        let mut all = fields(r#"{"n": 3, "x": 0.5, "b": true, "t": "a", "no": null}"#);
        assert_eq!(all.whole("n", 1..=4), Ok(Some(3)));
        assert_eq!(all.number("x", 0.0..=1.0), Ok(Some(0.5)));
        assert_eq!(all.truth("b"), Ok(true));
        assert_eq!(all.text("t"), Ok(Some("a".to_owned())));
        assert_eq!(all.text("no"), Ok(None));
        assert_eq!(all.end(), Ok(()));
        let mut all = fields(r#"{"n": 3, "x": 1.5, "m": "3", "f": 2.0, "k": -1}"#);
        assert_eq!(told(all.whole("n", 4..=9)), "n: 3 is out of range: it must be from 4 to 9");
        assert_eq!(
            told(all.number("x", 0.0..=1.0)),
            "x: 1.5 is out of range: it must be from 0 to 1"
        );
        assert_eq!(told(all.whole("m", 0..=9)), "m: expected a whole number, not a text");
        assert!(told(all.whole("f", 0..=9)).contains("not a number with a fraction"));
        assert!(told(all.whole("k", 0..=9)).contains("-1 is out of range"));
    }

    #[test]
    fn unknown_names_are_not_passed_over() {
        let mut all = fields(r#"{"user": "me", "temprature": 1}"#);
        assert_eq!(all.number("temperature", 0.0..=2.0), Ok(None));
        assert_eq!(told(all.end()), "temprature: no such parameter: did you mean temperature?");
    }
}
