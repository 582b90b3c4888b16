//! Bounds on the sources of chat templates, which anybody may have written.
//!
//! The library bounds how deep brackets and blocks lie in one another, but not signs before a value,
//! attributes and filters behind it, or one `elif` after the other, each of which takes as much of the
//! stack. What stands in one tag, texts left out, bounds the former.

/// Most signs of one tag, but for texts in it: published templates have a few hundred.
const TAG: usize = 2000;
/// Most tags `elif`.
const BRANCHES: usize = 200;

/// Looks through a source.
///
/// # Errors
/// What there is too much of, in words.
pub(super) fn check(source: &str) -> Result<(), String> {
    let mut rest = source;
    let mut branches = 0;
    while let Some(at) = rest.find('{') {
        let (kind, behind) = (rest.as_bytes().get(at + 1), rest.get(at + 2..).unwrap_or_default());
        rest = match kind {
            Some(b'#') => behind.find("#}").map_or("", |end| &behind[end + 2..]),
            Some(b'{') => tag(behind, "}}")?,
            Some(b'%') => {
                let word = behind.trim_start_matches(['-', '+', ' ', '\t', '\r', '\n']);
                branches += usize::from(word.starts_with("elif"));
                if branches > BRANCHES {
                    return Err(format!("more than {BRANCHES} tags elif"));
                }
                tag(behind, "%}")?
            }
            _ => &rest[at + 1..],
        };
    }
    Ok(())
}

/// What follows the tag that `source` begins within.
fn tag<'s>(source: &'s str, end: &str) -> Result<&'s str, String> {
    let (mut quote, mut signs, mut is_escaped) = (None, 0, false);
    for (at, sign) in source.char_indices() {
        if let Some(open) = quote {
            if is_escaped {
                is_escaped = false;
            } else if sign == '\\' {
                is_escaped = true;
            } else if sign == open {
                quote = None;
            }
            continue;
        }
        if source[at..].starts_with(end) {
            return Ok(&source[at + end.len()..]);
        }
        if matches!(sign, '"' | '\'') {
            quote = Some(sign);
        }
        signs += usize::from(!sign.is_whitespace());
        if signs > TAG {
            return Err(format!("a tag of more than {TAG} signs"));
        }
    }
    Ok("")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_texts_are_fine_and_long_expressions_are_not() {
        let long = "x".repeat(100_000);
        for source in [
            String::new(),
            "{".to_owned(),
            "a { b {# {{ #} {% if x %}{{ 'it}}' }}{% elif y %}{% endif %} é".to_owned(),
            format!("{long}{{{{ '{long}' ~ \"\\\"{long}\" }}}}{{# {long} #}}{long}"),
            "{{ x }}".repeat(10_000),
        ] {
            assert_eq!(check(&source), Ok(()), "{}", &source[..source.len().min(80)]);
        }
        for part in ["-", "not ", ".a", "|trim", " + 1", "[0]"] {
            let source = format!("{{{{ 1{} }}}}", part.repeat(3000));
            assert!(check(&source).unwrap_err().contains("2000 signs"), "{part}");
        }
        let source = format!("{{% if 1 %}}{}", "{%- elif 1 %}".repeat(201));
        assert!(check(&source).unwrap_err().contains("elif"));
        assert!(check("{{ '").is_ok(), "the parser tells what is wrong with it");
    }
}
