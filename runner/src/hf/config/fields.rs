//! Fields of a JSON object, read one by one so that a wrong one is named.

use serde::de::DeserializeOwned;
use serde_json::Value;

/// The fields of an object.
#[derive(Clone, Copy, Default)]
pub(super) struct Fields<'a> {
    json: Option<&'a Value>,
    /// The field that has the object; empty if it is all of the file.
    name: &'static str,
}

impl<'a> Fields<'a> {
    /// Those of a file.
    pub(super) fn new(json: &'a Value) -> Self {
        Self { json: Some(json), name: "" }
    }

    /// Those of a field, if it is there.
    ///
    /// # Errors
    /// It is not an object.
    pub(super) fn inner(self, name: &'static str) -> Result<Option<Self>, String> {
        match self.get(name) {
            None | Some(Value::Null) => Ok(None),
            Some(json @ Value::Object(_)) => Ok(Some(Self { json: Some(json), name })),
            Some(other) => Err(format!("{name} {other}: not an object")),
        }
    }

    /// The field that has the object.
    pub(super) fn name(self) -> &'static str {
        self.name
    }

    pub(super) fn is_empty(self) -> bool {
        self.entries().next().is_none()
    }

    /// Name and value of the first field that is an object itself.
    pub(super) fn first_object(self) -> Option<String> {
        let mut objects = self.entries().filter(|(_, value)| value.is_object());
        objects.next().map(|(name, value)| format!("{}{name} {value}", self.path()))
    }

    /// A field, or what it is where it is absent.
    ///
    /// # Errors
    /// Names it: it is of another type, or `null`.
    pub(super) fn or<T: DeserializeOwned>(self, name: &str, default: T) -> Result<T, String> {
        self.get(name).map_or(Ok(default), |value| self.parsed(name, value))
    }

    /// A field that may be `null`, or what it is where it is absent.
    ///
    /// # Errors
    /// Names it: it is of another type.
    pub(super) fn optional<T: DeserializeOwned>(
        self,
        name: &str,
        default: Option<T>,
    ) -> Result<Option<T>, String> {
        match self.get(name) {
            None => Ok(default),
            Some(Value::Null) => Ok(None),
            Some(value) => self.parsed(name, value).map(Some),
        }
    }

    /// A field that must be there.
    ///
    /// # Errors
    /// Names it: it is not, or it is of another type.
    pub(super) fn wanted<T: DeserializeOwned>(self, name: &str) -> Result<T, String> {
        let found = self.optional(name, None)?;
        found.ok_or_else(|| format!("no {}{name}", self.path()))
    }

    fn get(self, name: &str) -> Option<&'a Value> {
        self.json.and_then(|json| json.get(name))
    }

    fn entries(self) -> impl Iterator<Item = (&'a String, &'a Value)> {
        self.json.and_then(Value::as_object).into_iter().flatten()
    }

    fn path(self) -> String {
        if self.name.is_empty() { String::new() } else { format!("{}.", self.name) }
    }

    fn parsed<T: DeserializeOwned>(self, name: &str, value: &Value) -> Result<T, String> {
        T::deserialize(value).map_err(|e| format!("{}{name}: {e}", self.path()))
    }
}
