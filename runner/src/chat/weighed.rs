//! Bounds on what chat templates do while they run.
//!
//! The library counts steps and bytes, but not what lies within lists and maps: one of two of the same
//! list, made again and again, has as many items as nobody can print or compare, and one in one is too
//! deep to be dropped. So the compiled template gets a step more behind each one that may make a list or a
//! map, and before each that goes through all of a value:
//!
//! ```text
//! Lookup x, Lookup x, BuildList 2            becomes  Lookup x, Lookup x, BuildList 2, weigh
//! Lookup x, Lookup n, SetAttr s              becomes  Lookup x, Lookup n, Swap, weigh, Swap, SetAttr s
//! ```
//! It weighs the value, which takes of the template's steps, and refuses what is too large or too deep.

use std::collections::BTreeSet;
use std::sync::Arc;

use minijinja::machinery::{CodeGenerator, Instruction, Instructions, parse};
use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Object, ValueKind};
use minijinja::{Error, State, Value};

use super::template::refusal;

/// What weighs a value, and one that a namespace is to keep, among the variables of a template: names that
/// it cannot say.
const WEIGH: &str = "weigh a value";
const KEEP: &str = "weigh a value to keep";
/// What weighs a text that an item is taken of, and nothing else: lists have theirs at hand.
const TEXT: &str = "weigh a text";

/// How deep lists and maps may lie within one another.
const DEEPEST: usize = 32;
/// Bytes of a text that weigh as much as a value, and what a step of the template pays for.
const OF_TEXT: usize = 64;
const OF_STEP: usize = 16;
/// What may be kept besides the messages, and a few times of these: a megabyte of text, or some.
const LIGHT: usize = 16_384;
const OF_MESSAGE: usize = 16;
const OF_VALUE: usize = 4;
const OF_BYTES: usize = 4;

/// Compiles a source.
///
/// # Errors
/// It is no template.
pub(super) fn compile<'s>(
    name: &'s str,
    source: &'s str,
    syntax: SyntaxConfig,
) -> Result<Instructions<'s>, Error> {
    let parsed = parse(source, name, syntax)?;
    let mut code = CodeGenerator::new(name, source);
    code.compile_stmt(&parsed);
    let (plain, _) = code.finish();
    // Where each step lies when all are in place, and one more: jumps may go behind the last.
    let (mut places, mut next) = (Vec::new(), 0);
    let targets: BTreeSet<u32> = steps(&plain).filter_map(target).collect();
    for (at, step) in (0..).zip(steps(&plain)) {
        places.push(next);
        let (before, after) = around(step, is_named(&plain, at, &targets));
        next += u32::try_from(before.len() + 1 + after.len()).map_err(|_| too_long())?;
    }
    places.push(next);
    let mut weighed = Instructions::new(name, source);
    for (at, step) in (0..).zip(steps(&plain)) {
        if matches!(step, Instruction::CallMethod("cycle", Some(1) | None)) {
            // The library divides by how many there are.
            return Err(refusal("loop.cycle() without values to go through".to_owned()));
        }
        if matches!(step, Instruction::PerformTest(_, None, _)) {
            return Err(refusal("a test of as many values as a list has".to_owned()));
        }
        let line = plain.get_line(at).and_then(|line| u16::try_from(line).ok()).unwrap_or(u16::MAX);
        let (before, after) = around(step, is_named(&plain, at, &targets));
        let step = moved(step, &places).ok_or_else(too_long)?;
        for step in before.iter().cloned().chain([step]).chain(after.iter().cloned()) {
            weighed.add_with_line(step, line);
        }
    }
    Ok(weighed)
}

fn too_long() -> Error {
    refusal("it is too long".to_owned())
}

fn steps<'p, 's>(plain: &'p Instructions<'s>) -> impl Iterator<Item = &'p Instruction<'s>> {
    (0..).map_while(|at| plain.get(at))
}

/// Where a step may jump to.
fn target(step: &Instruction<'_>) -> Option<u32> {
    match step {
        Instruction::Iterate(target)
        | Instruction::Jump(target)
        | Instruction::JumpIfFalse(target)
        | Instruction::JumpIfFalseOrPop(target)
        | Instruction::JumpIfTrueOrPop(target)
        | Instruction::BuildMacro(_, target, _) => Some(*target),
        _ => None,
    }
}

/// A step whose jump, if it is one, goes to where its target lies now.
fn moved<'s>(step: &Instruction<'s>, places: &[u32]) -> Option<Instruction<'s>> {
    let mut step = step.clone();
    if let Instruction::Iterate(target)
    | Instruction::Jump(target)
    | Instruction::JumpIfFalse(target)
    | Instruction::JumpIfFalseOrPop(target)
    | Instruction::JumpIfTrueOrPop(target)
    | Instruction::BuildMacro(_, target, _) = &mut step
    {
        *target = *places.get(*target as usize)?;
    }
    Some(step)
}

/// Whether what a step is done with is always the name right before it, as in `message['role']`: what is
/// taken by name is found at once.
fn is_named(plain: &Instructions<'_>, at: u32, targets: &BTreeSet<u32>) -> bool {
    let before = at.checked_sub(1).and_then(|before| plain.get(before));
    let name = |step: &Instruction<'_>| matches!(step, Instruction::LoadConst(name) if name.as_str().is_some());
    before.is_some_and(name) && !targets.contains(&at)
}

/// Filters that do not look into what is within a value.
const SHALLOW: [&str; 9] =
    ["count", "d", "default", "first", "last", "length", "list", "reverse", "trim"];
/// Tests that do.
const COMPARING: [&str; 18] = [
    "eq",
    "equalto",
    "==",
    "ne",
    "!=",
    "lt",
    "lessthan",
    "<",
    "le",
    "<=",
    "gt",
    "greaterthan",
    ">",
    "ge",
    ">=",
    "in",
    "lower",
    "upper",
];

/// The steps to put before one, which may be done with a name, and behind it.
fn around(
    step: &Instruction<'_>,
    is_named: bool,
) -> (&'static [Instruction<'static>], &'static [Instruction<'static>]) {
    const NONE: &[Instruction<'static>] = &[];
    const TOP: &[Instruction<'static>] = &[Instruction::CallFunction(WEIGH, Some(1))];
    const SECOND: &[Instruction<'static>] =
        &[Instruction::Swap, Instruction::CallFunction(KEEP, Some(1)), Instruction::Swap];
    const BOTH: &[Instruction<'static>] = &[
        Instruction::Swap,
        Instruction::CallFunction(WEIGH, Some(1)),
        Instruction::Swap,
        Instruction::CallFunction(WEIGH, Some(1)),
    ];
    const ITEM: &[Instruction<'static>] = &[
        Instruction::Swap,
        Instruction::CallFunction(TEXT, Some(1)),
        Instruction::Swap,
        Instruction::CallFunction(WEIGH, Some(1)),
    ];
    match step {
        Instruction::SetAttr(_) => (SECOND, NONE),
        Instruction::GetItem if is_named => (NONE, NONE),
        Instruction::GetItem => (ITEM, NONE),
        Instruction::Add
        | Instruction::Mul
        | Instruction::Slice
        | Instruction::BuildList(_)
        | Instruction::BuildTuple(_)
        | Instruction::BuildMap(_)
        | Instruction::CallFunction(..)
        | Instruction::CallObject(_) => (NONE, TOP),
        Instruction::ApplyFilter(name, ..) if SHALLOW.contains(name) => (NONE, TOP),
        Instruction::ApplyFilter(..) | Instruction::CallMethod(..) => (TOP, TOP),
        Instruction::PerformTest("in", Some(2), _) => (BOTH, NONE),
        Instruction::PerformTest(name, ..) if !COMPARING.contains(name) => (NONE, NONE),
        Instruction::Eq
        | Instruction::Ne
        | Instruction::Gt
        | Instruction::Gte
        | Instruction::Lt
        | Instruction::Lte
        | Instruction::PerformTest(..) => (TOP, NONE),
        // What is looked for in a map is gone through too.
        Instruction::In | Instruction::CompareAndPreserve(_) => (BOTH, NONE),
        _ => (NONE, NONE),
    }
}

/// The variables that a weighed template needs, for messages of so many bytes, with so many values in their
/// fields and in tools.
pub(super) fn scales(messages: usize, values: usize, bytes: usize) -> [(&'static str, Value); 3] {
    let most = LIGHT + OF_MESSAGE * messages + OF_VALUE * values + bytes / OF_BYTES;
    [(WEIGH, Of::All), (KEEP, Of::Kept), (TEXT, Of::Text)]
        .map(|(name, of)| (name, Value::from_object(Scales { most, of })))
}

/// Takes of a template's steps what it costs to go through the items of a list, and through what a method is
/// given, and says how many bytes that is at most: `ahead` has what texts cost beyond it.
///
/// # Errors
/// There are not as many steps left.
pub(super) fn pay(state: &State<'_, '_>, of: &Value, given: &[Value]) -> Result<usize, Error> {
    let mut left = usize::MAX;
    for value in (of.kind() == ValueKind::Seq).then_some(of).into_iter().chain(given) {
        weigh(value, &mut left, 0).map_err(refusal)?;
    }
    let weight = usize::MAX - left;
    state.consume_fuel((weight / OF_STEP) as u64)?;
    Ok(weight.saturating_mul(OF_TEXT))
}

/// What of a value is weighed.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Of {
    All,
    /// All, of what a namespace is to keep.
    Kept,
    Text,
}

/// What weighs values.
#[derive(Debug)]
struct Scales {
    most: usize,
    of: Of,
}

impl Object for Scales {
    fn call(self: &Arc<Self>, state: &mut State<'_, '_>, args: &[Value]) -> Result<Value, Error> {
        let [value] = args else { return Err(refusal("one value is weighed".to_owned())) };
        let mut left = self.most;
        if self.of != Of::Text || value.as_str().is_some() {
            weigh(value, &mut left, usize::from(self.of == Of::Kept)).map_err(refusal)?;
        }
        state.consume_fuel(((self.most - left) / OF_STEP) as u64)?;
        Ok(value.clone())
    }
}

/// Takes a value's weight from what is left.
fn weigh(value: &Value, left: &mut usize, depth: usize) -> Result<(), String> {
    let weight = 1 + value.as_str().map_or(0, str::len) / OF_TEXT;
    *left = left.checked_sub(weight).ok_or("a text, list or map far larger than the messages")?;
    if !matches!(value.kind(), ValueKind::Seq | ValueKind::Iterable | ValueKind::Map) {
        return Ok(());
    }
    if depth > DEEPEST {
        return Err(format!("lists or maps more than {DEEPEST} deep"));
    }
    let Some(object) = value.as_object() else { return Ok(()) };
    // It could come to hold itself, or what nobody sees: a loop has its item.
    if depth > 0 && ["::Namespace", "::Loop"].iter().any(|name| object.type_name().ends_with(name))
    {
        return Err("a namespace or a loop within a list, a map or a namespace".to_owned());
    }
    if value.kind() == ValueKind::Map {
        for (key, item) in object.try_iter_pairs().into_iter().flatten() {
            weigh(&key, left, depth + 1)?;
            weigh(&item, left, depth + 1)?;
        }
    } else {
        for item in object.try_iter().into_iter().flatten() {
            weigh(&item, left, depth + 1)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use crate::chat::template::rendered;
    use crate::chat::{Dialogue, Message, Template};
    use crate::tokenizer::usage::Usage;
    use core::time::Duration;
    use std::path::Path;
    use std::time::Instant;

    fn render(source: &str) -> Result<String, String> {
        rendered(source, &[Message::new("user", "Hi"), Message::new("assistant", "Ho")])
    }

    /// A loop that changes what a namespace keeps, and says it.
    fn kept(begin: &str, change: &str) -> String {
        format!(
            "{{% set n = namespace(s={begin}) %}}{{% for a in range(9999) %}}{{% set n.s = {change} %}}\
             {{% endfor %}}{{{{ n.s }}}}"
        )
    }

    #[test]
    fn what_grows_without_end_is_refused_in_time() {
        let fill = "{% set n = namespace(s=[range(4000) | list, range(3000) | map('string') | list]) %}\
                    {% set m = n.s + [] %}{% set d = {1: 2, 3: 4} %}";
        let double = "{% set n = namespace(s='ab') %}{% for i in range(18) %}{% set n.s = n.s ~ n.s %}\
                      {% endfor %}";
        let again = |fill: &str, work: &str| {
            format!(
                "{fill}{{% for a in range(9999) %}}{{% for b in range(9999) %}}{work}{{% endfor %}}\
                 {{% endfor %}}"
            )
        };
        let (slow, long) = (|work: &str| again(fill, work), |work: &str| again(double, work));
        let macros =
            |body: &str| format!("{{% macro f(x) %}}{body}{{% endmacro %}}{{{{ f([0]) }}}}");
        for source in [
            kept("[0]", "n.s + n.s"),
            kept("[0]", "[n.s, n.s]"),
            kept("[0]", "[n.s]"),
            kept("[0]", "(n.s, n.s)"),
            kept("[0]", "n.s | batch(1)"),
            kept("[0]", "n.s | zip(n.s) | list"),
            kept("[0]", "n.s | chain(n.s)"),
            kept("[0]", "{'a': n.s, 'b': n.s}"),
            kept("[0]", "{'a': n.s, 'b': n.s}.items()"),
            kept("[0]", "dict(a=n.s, b=n.s)"),
            kept("[0]", "n.s * 2"),
            kept("[0]", "n.s | map('list') | list + n.s"),
            kept("'x'", "n.s ~ n.s"),
            kept("'x'", "n.s + n.s"),
            kept("'x'", "n.s * 2"),
            kept("'x'", "[n.s, n.s] | join(n.s)"),
            kept("'x'", "n.s.replace('x', 'xx')"),
            kept("'x'", "n"),
            kept("'x'", "[n]"),
            kept("'x'", "namespace(a=n)"),
            "{% set n = namespace(s=0) %}{% for a in range(9999) %}{% for b in [n.s] %}{% set n.s = loop %}\
             {% endfor %}{% endfor %}".to_owned(),
            "{% set range = dict %}{% set a = range(a=1) %}".to_owned()
                + &"{% set a = range(a=a, b=a) %}".repeat(60),
            macros("{{ f(x + x) }}"),
            macros("{{ f([x, x]) }}"),
            macros("{{ f(x) }}{{ f(x) }}"),
            "{% for a in messages recursive %}{{ loop([loop.nextitem, a, a]) }}{% endfor %}"
                .to_owned(),
            "{% set a = [0, [0] ] %}{% set a = [a, a] %}".to_owned()
                + &"{% set a = [a, a] %}".repeat(60),
            slow("{{ n.s == m }}"),
            slow("{{ n.s < m < n.s }}"),
            slow("{{ m in [n.s] }}"),
            slow("{{ n.s is eq(m) }}"),
            slow("{{ {n.s: 1}[m] }}"),
            slow("{{ [n.s, m] | sort | length }}"),
            slow("{{ [n.s, m] | unique | list | length }}"),
            slow("{{ n.s | tojson }}"),
            slow("{{ n.s | string | length }}"),
            slow("{{ n.s ~ '' }}"),
            slow("{{ n.s[1:] }}"),
            slow("{{ loop.changed(n.s) }}"),
            slow("{% set x = d[n.s] %}"),
            slow("{% set x = d[n.s or 'x'] %}"),
            slow("{% set x = d.get(n.s, 1) %}"),
            slow("{% set x = n.s.count(7) %}"),
            slow("{{ n.s in d }}"),
            slow("{{ n.s is in(d) }}"),
            slow("{{ n.s is in(*[d]) }}"),
            long("{% set x = n.s[-5] %}"),
            long("{% set x = n.s[400000] %}"),
            long("{% set x = n.s is lower %}"),
            "{{ messages | tojson(indent=1000000000) }}".to_owned(),
            "{{ ([0] * 100000000) ~ '' }}".to_owned(),
            "{% for m in messages %}{{ loop.cycle() }}{% endfor %}".to_owned(),
            "{% for m in messages %}{{ loop.cycle(*[]) }}{% endfor %}".to_owned(),
        ] {
            let begin = Instant::now();
            let error = render(&source).unwrap_err();
            assert!(error.contains("there: the chat template"), "{source}: {error}");
            assert!(begin.elapsed() < Duration::from_secs(10), "{source}: {:?}", begin.elapsed());
        }
    }

    #[test]
    fn tools_weigh_what_they_are() {
        let tools = format!(r#"[{{"a": [{}{{}}]}}]"#, "{},".repeat(60_000));
        let mut said = Dialogue::of(vec![Message::new("user", "Hi")]);
        said.equip(&serde_json::from_str(&tools).unwrap()).unwrap();
        let render = |source: &str| {
            let usage = Usage { chat_template: Some(source.to_owned()), ..Usage::default() };
            let template = Template::of(usage, Path::new("there")).unwrap();
            let made = template.compile().unwrap().render(&said.messages, &said.tools, true);
            made.map_err(|error| error.to_string())
        };
        assert_eq!(render("{{ tools | tojson | length }}").as_deref(), Ok("240013"));
        for source in [
            kept("tools", "n.s + n.s"),
            kept("tools[0].a", "n.s + n.s"),
            kept("[0]", "n.s + [tools]"),
            kept("[0]", "tools[0].a + tools[0].a"),
            "{% for a in range(9999) %}{{ tools == tools }}{% endfor %}".to_owned(),
            "{% for a in range(9999) %}{{ tools | tojson | length }}{% endfor %}".to_owned(),
        ] {
            let begin = Instant::now();
            let error = render(&source).map(|made| made.len()).unwrap_err();
            assert!(error.contains("there: the chat template"), "{source}: {error}");
            assert!(begin.elapsed() < Duration::from_secs(10), "{source}: {:?}", begin.elapsed());
        }
    }

    #[test]
    fn what_templates_do_is_as_before() {
        for (source, text) in [
            (
                "{% set n = namespace(s=[]) %}{% for m in messages %}{% set n.s = n.s + [m.role] %}{% endfor \
              %}{{ n.s | join(',') }}",
                "user,assistant",
            ),
            (
                "{% macro f(x, y='z') %}{% if x %}{{ x.pop }}{{ y }}{{ f(x[1:]) }}{% endif %}{% endmacro %}\
              {{ f([1, 2]) }}{{ f([1], y='w') }}",
                "zzw",
            ),
            (
                "{% for a in [[1, [2]], 3] recursive %}{% if a is iterable %}({{ loop(a) }}){% else %}{{ a }}\
              {% endif %}{% else %}-{% endfor %}",
                "(1(2))3",
            ),
            (
                "{% for m in messages[::-1] if m.role != 'x' %}{{ m.content if loop.first else [m.role, 'b'] \
              }}{{ loop.cycle('a', 'b') }}{% break %}{% endfor %}",
                "Hoa",
            ),
            (
                "{% set x = (1, 2) %}{% set a, b = x %}{% with c = {'k': [a]} %}{{ a < b <= 2 }}{{ c }}\
              {% endwith %}{{ x }}",
                "True{'k': [1]}(1, 2)",
            ),
            (
                "{% set x %}{% filter upper %}{{ 'a' if 1 in [1, 2] else ['b'] }}{% endfilter %}{% endset %}\
              {{ x }}{{ none or [] or 'c' and messages | length }}{{ range(2) | list }}",
                "A2[0, 1]",
            ),
            (
                "{% macro f() %}{{ caller(1) }}{% endmacro %}{% call(x) f() %}{{ x + 1 }}{% endcall %}",
                "2",
            ),
        ] {
            assert_eq!(render(source).as_deref(), Ok(text), "{source}");
        }
    }
}
