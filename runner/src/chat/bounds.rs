//! Bounds on the sources of chat templates, which anybody may have written.
//!
//! The library bounds how deep brackets and blocks lie in one another, but not signs before a value,
//! attributes and filters behind it, or one `elif` after the other, each of which takes as much of the
//! stack: how many tokens are in one tag bounds the former. It also works out what is written of constants
//! before anything is counted, so lists that are repeated are refused.

use minijinja::machinery::{Token, tokenize};
use minijinja::syntax::SyntaxConfig;

/// Most tokens of one tag: published templates have a few hundred.
const TAG: usize = 1000;
/// Most tags `elif`.
const BRANCHES: usize = 200;

/// Looks through a source.
///
/// # Errors
/// What there is too much of, in words.
pub(super) fn check(source: &str, syntax: &SyntaxConfig) -> Result<(), String> {
    let (mut tokens, mut branches) = (0, 0);
    let (mut is_list, mut is_product, mut is_value) = (false, false, false);
    // What is no token is told by the parser.
    for token in tokenize(source, false, syntax.clone()).map_while(Result::ok) {
        tokens += 1;
        match &token.0 {
            Token::VariableStart | Token::BlockStart => {
                (tokens, is_list, is_product) = (0, false, false);
            }
            Token::Ident("elif") if tokens == 1 => branches += 1,
            Token::BracketOpen => is_list |= !is_value,
            Token::Mul => is_product = true,
            _ => {}
        }
        if tokens > TAG {
            return Err(format!("a tag of more than {TAG} words and signs"));
        }
        if branches > BRANCHES {
            return Err(format!("more than {BRANCHES} tags elif"));
        }
        if is_list && is_product {
            return Err("a list and a `*` in one tag: lists are not repeated".to_owned());
        }
        // A bracket behind one of these takes an item.
        is_value = match token.0 {
            Token::Ident(word) => !KEYWORDS.contains(&word),
            Token::Str(_) | Token::String(_) | Token::BracketClose | Token::ParenClose => true,
            _ => false,
        };
    }
    Ok(())
}

/// Words that a list may follow.
const KEYWORDS: [&str; 8] = ["in", "if", "else", "elif", "and", "or", "not", "is"];

#[cfg(test)]
mod tests {
    use super::*;

    fn check(source: &str) -> Result<(), String> {
        super::check(source, &SyntaxConfig::default())
    }

    #[test]
    fn long_texts_are_fine_and_long_expressions_are_not() {
        let long = "x".repeat(100_000);
        for source in [
            String::new(),
            "{".to_owned(),
            "a { b {# {{ #} {% if x %}{{ 'it}}' }}{% elif y %}{% endif %} é".to_owned(),
            format!("{long}{{{{ '{long}' ~ \"\\\"{long}\" }}}}{{# {long} #}}{long}"),
            "{{ x }}".repeat(10_000),
            "{{ messages[0] * 2 }}{{ x()[1] * 'a'[0] }}{{ [1] }}{{ 2 * 3 }}".to_owned(),
        ] {
            assert_eq!(check(&source), Ok(()), "{}", &source[..source.len().min(80)]);
        }
        for part in ["-", "not ", ".a", "|trim", " + 1", "[0]"] {
            for begin in ["{{", "{{ {'a': {'b': 1}} ~ "] {
                let source = format!("{begin} 1{} }}}}", part.repeat(3000));
                assert!(check(&source).unwrap_err().contains("1000 words"), "{part}");
            }
        }
        let source = format!("{{% if 1 %}}{}", "{%- elif 1 %}".repeat(201));
        assert!(check(&source).unwrap_err().contains("elif"));
        assert!(check("{{ '").is_ok(), "the parser tells what is wrong with it");
        for source in ["{{ [0] * 9 }}", "{% if 9 * ([0]) %}", "{{ x if [1] else [0] * 9 }}"] {
            assert!(check(source).unwrap_err().contains("repeated"), "{source}");
        }
    }
}
