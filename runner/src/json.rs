//! JSON of files that anybody may have written: parsed only if its values will not take far more memory
//! than its text.
//!
//! A value of two characters takes 32 bytes, a field of an object up to hundreds, whether all of it is
//! wanted or only kept until its type is known. So a text is gone through once before, and counted.

use core::fmt;
use std::io::ErrorKind;
use std::path::Path;

mod ordered;

pub(crate) use ordered::Ordered;

use serde::de::{DeserializeOwned, DeserializeSeed, MapAccess, SeqAccess, Visitor};
use serde::{Deserializer, Serialize, de};
use serde_json::Value;

use crate::error::Error;
use crate::files;

/// Bytes that values may take whatever their text, and for each byte of it: the largest tokenizers that
/// people use take three.
const FREE: usize = 16 << 20;
const PER_BYTE: usize = 4;
/// Bytes of a value, and what an object of any fields has beside them.
const VALUE: usize = 32;
const OBJECT: usize = 640;
const FIELD: usize = 96;

/// Parses a text.
///
/// # Errors
/// It is no JSON, or not of this type, or of so many values that they would fill the memory.
pub(crate) fn from_slice<T: DeserializeOwned>(text: &[u8]) -> serde_json::Result<T> {
    let mut left = FREE.saturating_add(text.len().saturating_mul(PER_BYTE));
    let mut json = serde_json::Deserializer::from_slice(text);
    // What is no JSON is told by the parser of what is wanted.
    if let Err(error) = Cost(&mut left).deserialize(&mut json)
        && error.is_data()
    {
        return Err(error);
    }
    serde_json::from_slice(text)
}

/// What a file says; null if it is not there.
///
/// # Errors
/// Names the file that cannot be read, or is no JSON.
pub(crate) fn of_file(path: &Path) -> crate::error::Result<Value> {
    match files::read(path) {
        Ok(text) => from_slice(&text)
            .map_err(|cause| Error::failure(format!("{}: {cause}", path.display()))),
        Err(cause) if cause.kind() == ErrorKind::NotFound => Ok(Value::Null),
        Err(cause) => Err(Error::io("read", path, &cause)),
    }
}

/// A value with the digits that tell its numbers, as a file has them: `f32` would have those of `f64`.
/// `Null` if it cannot be written.
pub(crate) fn as_written(value: &impl Serialize) -> Value {
    let text = serde_json::to_string(value).unwrap_or_default();
    serde_json::from_str(&text).unwrap_or_default()
}

/// What to do with a file that is an array instead of lines.
pub(crate) const ARRAY_HINT: &str =
    "; a file that is one array becomes such lines by jq -c '.[]' FILE > FILE.jsonl";

/// What is wrong with a line that is to be a value of JSON, for where it is has been said already.
pub(crate) fn line_error(line: &[u8], error: &serde_json::Error) -> String {
    let cause = error.to_string();
    let cause = cause.split(" at line ").next().unwrap_or_default();
    let hint = match line.trim_ascii() {
        [b'[', ..] => ARRAY_HINT,
        [b'{'] => "; an object has to be whole in one line: jq -c . makes lines of them",
        _ => "",
    };
    let column =
        if error.is_eof() { String::new() } else { format!(" in column {}", error.column()) };
    format!("not a line of JSON: {cause}{column}{hint}")
}

/// Takes what a value costs off what is left.
struct Cost<'l>(&'l mut usize);

impl Cost<'_> {
    fn pay<E: de::Error>(&mut self, bytes: usize) -> Result<(), E> {
        *self.0 = self.0.checked_sub(bytes).ok_or_else(|| {
            E::custom("more values than a text of this length may have: they would fill the memory")
        })?;
        Ok(())
    }
}

impl<'de> DeserializeSeed<'de> for Cost<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Cost<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_unit<E: de::Error>(mut self) -> Result<(), E> {
        self.pay(VALUE)
    }

    fn visit_bool<E: de::Error>(mut self, _: bool) -> Result<(), E> {
        self.pay(VALUE)
    }

    fn visit_u64<E: de::Error>(mut self, _: u64) -> Result<(), E> {
        self.pay(VALUE)
    }

    fn visit_i64<E: de::Error>(mut self, _: i64) -> Result<(), E> {
        self.pay(VALUE)
    }

    fn visit_f64<E: de::Error>(mut self, _: f64) -> Result<(), E> {
        self.pay(VALUE)
    }

    fn visit_str<E: de::Error>(mut self, text: &str) -> Result<(), E> {
        self.pay(VALUE + text.len())
    }

    fn visit_seq<A: SeqAccess<'de>>(mut self, mut values: A) -> Result<(), A::Error> {
        self.pay::<A::Error>(VALUE)?;
        while values.next_element_seed(Cost(self.0))?.is_some() {}
        Ok(())
    }

    fn visit_map<A: MapAccess<'de>>(mut self, mut fields: A) -> Result<(), A::Error> {
        self.pay::<A::Error>(VALUE)?;
        let mut is_first = true;
        while fields.next_key_seed(Cost(self.0))?.is_some() {
            self.pay::<A::Error>(if is_first { OBJECT } else { FIELD })?;
            is_first = false;
            fields.next_value_seed(Cost(self.0))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    #[test]
    fn what_would_fill_the_memory_is_refused_and_the_rest_is_parsed() {
        let parse = |text: &str| from_slice::<Value>(text.as_bytes());
        let text = r#"{"a": [1, -2, 3e4, null, true, "x\n"], "b": {"c": {}}}"#;
        let expected = json!({"a": [1, -2, 3e4, null, true, "x\n"], "b": {"c": {}}});
        assert_eq!(parse(text).unwrap(), expected);
        assert!(parse(&format!("[{}0]", "{\"\":0},".repeat(20_000))).is_ok());
        let many = parse(&format!("[{}0]", "{\"\":0},".repeat(100_000))).map(drop);
        assert!(many.unwrap_err().to_string().contains("fill the memory"));
        let many = parse(&format!("[{}0]", "0,".repeat(1_000_000))).map(drop);
        assert!(many.unwrap_err().to_string().contains("fill the memory"));
    }

    #[test]
    fn what_is_no_json_is_told_as_ever() {
        for text in ["", "{", "[1,]", "{\"a\": 01}", "\"\\ud800\"", &"[".repeat(200)] {
            let (here, there) =
                (from_slice::<Value>(text.as_bytes()), serde_json::from_str::<Value>(text));
            assert_eq!(here.unwrap_err().to_string(), there.unwrap_err().to_string());
        }
    }
}
