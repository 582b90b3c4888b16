//! JSON with the fields of objects in the order of the text.
//!
//! What a chat template writes of a list of tools, a model sees in the order that whoever made it meant, as
//! Python keeps it; the maps of `serde_json` are sorted.

use core::fmt;

use serde::de::{Deserialize, Deserializer, Error, MapAccess, SeqAccess, Visitor};
use serde_json::Number;
#[cfg(any(feature = "serve", test))]
use serde_json::Value;

/// A value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Ordered {
    /// Nothing.
    Null,
    /// A truth.
    Bool(bool),
    /// A number.
    Number(Number),
    /// A text.
    Text(String),
    /// A list.
    List(Vec<Self>),
    /// The fields of an object as they were written, one that is there twice too: the last one counts.
    Object(Vec<(String, Self)>),
}

impl Ordered {
    /// A field of an object.
    pub(crate) fn get(&self, name: &str) -> Option<&Self> {
        let Self::Object(fields) = self else { return None };
        fields.iter().rfind(|(key, _)| key == name).map(|(_, value)| value)
    }

    /// A field that is there and not null.
    pub(crate) fn given(&self, name: &str) -> Option<&Self> {
        self.get(name).filter(|value| **value != Self::Null)
    }

    /// What it is, for errors.
    pub(crate) fn kind(&self) -> &'static str {
        match self {
            Self::Null => "null",
            Self::Bool(_) => "true or false",
            Self::Number(number) if number.is_f64() => "a number with a fraction",
            Self::Number(_) => "a number",
            Self::Text(_) => "a text",
            Self::List(_) => "an array",
            Self::Object(_) => "an object",
        }
    }

    /// The same with sorted fields.
    #[cfg(feature = "serve")]
    pub(crate) fn sorted(self) -> Value {
        match self {
            Self::Null => Value::Null,
            Self::Bool(truth) => Value::Bool(truth),
            Self::Number(number) => Value::Number(number),
            Self::Text(text) => Value::String(text),
            Self::List(items) => items.into_iter().map(Self::sorted).collect(),
            Self::Object(fields) => Value::Object(
                fields.into_iter().map(|(key, value)| (key, value.sorted())).collect(),
            ),
        }
    }
}

impl<'de> Deserialize<'de> for Ordered {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(Reader)
    }
}

struct Reader;

impl<'de> Visitor<'de> for Reader {
    type Value = Ordered;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_unit<E: Error>(self) -> Result<Ordered, E> {
        Ok(Ordered::Null)
    }

    fn visit_bool<E: Error>(self, truth: bool) -> Result<Ordered, E> {
        Ok(Ordered::Bool(truth))
    }

    fn visit_u64<E: Error>(self, number: u64) -> Result<Ordered, E> {
        Ok(Ordered::Number(number.into()))
    }

    fn visit_i64<E: Error>(self, number: i64) -> Result<Ordered, E> {
        Ok(Ordered::Number(number.into()))
    }

    fn visit_f64<E: Error>(self, number: f64) -> Result<Ordered, E> {
        // JSON has no number that is none.
        Ok(Number::from_f64(number).map_or(Ordered::Null, Ordered::Number))
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<Ordered, E> {
        Ok(Ordered::Text(text.to_owned()))
    }

    fn visit_string<E: Error>(self, text: String) -> Result<Ordered, E> {
        Ok(Ordered::Text(text))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut values: A) -> Result<Ordered, A::Error> {
        let mut items = Vec::new();
        while let Some(item) = values.next_element()? {
            items.push(item);
        }
        Ok(Ordered::List(items))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut values: A) -> Result<Ordered, A::Error> {
        let mut fields = Vec::new();
        while let Some(field) = values.next_entry()? {
            fields.push(field);
        }
        Ok(Ordered::Object(fields))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> serde_json::Result<Ordered> {
        serde_json::from_str(text)
    }

    #[test]
    fn fields_are_in_their_order_and_the_last_of_a_name_counts() {
        let value =
            parse(r#"{"b": [1, -2, 0.5, "x"], "a": {"d": null, "c": true}, "b": 7}"#).unwrap();
        let Ordered::Object(fields) = &value else { panic!("{value:?}") };
        let names: Vec<&str> = fields.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(names, ["b", "a", "b"]);
        assert_eq!(value.get("b"), Some(&Ordered::Number(7.into())));
        let Some(Ordered::Object(inner)) = value.get("a") else { panic!("{value:?}") };
        assert_eq!(inner[0], ("d".to_owned(), Ordered::Null));
        let inner = value.get("a").unwrap();
        assert_eq!(
            (inner.get("d"), inner.given("d"), inner.get("e")),
            (Some(&Ordered::Null), None, None)
        );
        assert_eq!(
            (inner.kind(), inner.given("c").unwrap().kind()),
            ("an object", "true or false")
        );
        assert_eq!((fields[0].1.kind(), fields[0].1.get("b")), ("an array", None));
    }

    #[cfg(feature = "serve")]
    #[test]
    fn sorted_it_is_what_the_library_reads() {
        let text = r#"{"b": [1, -2, 0.5, "x", 18446744073709551615], "a": {"d": null, "c": [true]}, "b": 7}"#;
        let expected: Value = serde_json::from_str(text).unwrap();
        assert_eq!(parse(text).unwrap().sorted(), expected);
    }

    #[test]
    fn what_is_deep_or_no_json_is_told_as_ever() {
        for text in ["", "{", "[1,]", "1e999", "\"\\ud800\"", &"[".repeat(200)] {
            let (here, there) = (parse(text), serde_json::from_str::<Value>(text));
            assert_eq!(here.unwrap_err().to_string(), there.unwrap_err().to_string());
        }
    }
}
