//! Multiple choice against probabilities that are computed for each answer alone.

mod cli_support;
mod hand;
mod support;

use std::fs;
use std::path::Path;

use cli_support::{run_in, words};
use cllm::train::Outcome;
use hand::Model;
use serde_json::{Value, json};
use support::{settings, train};

const QUESTIONS: [(&str, [&str; 3]); 5] = [
    ("the sea", ["were", "a day.", "qq"]),
    ("and the", ["land", "x", "sea and"]),
    ("so", ["in", "the", "zzz"]),
    // Longer than the model's context of 16: its beginning does not count.
    ("in the land were the sea and", ["so", "made in", "a"]),
    ("", ["the", "and", "!!"]),
];

/// The log-probabilities of the answers behind a question, from the definition.
fn scores(model: &mut Model, context: &str, answers: &[&str]) -> Vec<f64> {
    let space = if context.is_empty() { "" } else { " " };
    let answers: Vec<String> = answers.iter().map(|answer| [space, answer].concat()).collect();
    let longest = answers.iter().map(String::len).max().unwrap();
    let ids = |text: &str| text.bytes().map(u32::from).collect::<Vec<_>>();
    let mut context = ids(context);
    if context.is_empty() {
        context.push(256);
    }
    let context = &context[context.len().saturating_sub(17 - longest)..];
    let one = |answer: &String| -model.loss(&[context, &ids(answer)].concat(), context.len());
    answers.iter().map(one).collect()
}

fn best(scores: &[f64]) -> usize {
    (0..scores.len()).max_by(|a, b| scores[*a].total_cmp(&scores[*b])).unwrap()
}

fn report(dir: &Path, lines: &[Value]) -> Value {
    let text: String = lines.iter().map(|line| format!("{line}\n")).collect();
    fs::write(dir.join("q.jsonl"), text).unwrap();
    run_in(dir, &words("eval --checkpoint run --choices q.jsonl --log-format json")).json()
}

#[test]
fn the_likeliest_answer_is_chosen_and_the_likeliest_by_the_byte() {
    let dir = tempfile::tempdir().unwrap();
    assert_eq!(train(&settings(dir.path())), Ok(Outcome::Finished));
    let mut model = Model::open(&dir.path().join("run/best.cllm"));
    let mut chosen = [Vec::new(), Vec::new()];
    for (context, answers) in QUESTIONS {
        let scores = scores(&mut model, context, &answers);
        let by_byte = scores.iter().zip(answers).map(|(s, answer)| s / answer.len() as f64);
        chosen[1].push(best(&by_byte.collect::<Vec<_>>()));
        chosen[0].push(best(&scores));
    }
    assert_ne!(chosen[0], chosen[1], "other questions would tell more");
    for (kind, name) in ["accuracy", "accuracy_norm"].into_iter().enumerate() {
        // All right, then the first alone, then none.
        for right in [5, 1, 0] {
            let line = |(i, (context, answers)): (usize, &(&str, [&str; 3]))| {
                let label = (chosen[kind][i] + usize::from(i >= right)) % 3;
                json!({ "ctx": context, "endings": answers, "label": label })
            };
            let lines: Vec<Value> = QUESTIONS.iter().enumerate().map(line).collect();
            let report = report(dir.path(), &lines);
            assert_eq!(report[name], right as f64 / 5.0, "{report}");
            assert_eq!((&report["items"], &report["cut"]), (&json!(5), &json!(1)));
            let interval = &report[&format!("{name}_interval")];
            let [low, high] = [0, 1].map(|i| interval[i].as_f64().unwrap());
            assert!(low <= right as f64 / 5.0 && right as f64 / 5.0 <= high && high - low > 0.3);
            assert!((report["chance"].as_f64().unwrap() - 1.0 / 3.0).abs() < 1e-12);
        }
    }
    let text =
        run_in(dir.path(), &words("eval --checkpoint run --choices q.jsonl --threads 2")).done();
    for part in
        ["accuracy       ", "by the byte    ", "by chance      33.33 %", "5, 1 of them without"]
    {
        assert!(text.stdout.contains(part), "no {part:?} in {}", text.stdout);
    }
}

#[test]
fn forms_of_other_data_sets_and_mistakes_in_them() {
    let dir = tempfile::tempdir().unwrap();
    assert_eq!(train(&settings(dir.path())), Ok(Outcome::Finished));
    let choices = json!({ "text": ["a", "b"], "label": ["A", "B"] });
    let arc = json!({ "question": "Q", "choices": choices, "answerKey": "B" });
    let same = json!({ "prompt": "Question: Q\nAnswer:", "choices": ["a", "b"], "gold": "B" });
    let (arc, same) = (report(dir.path(), &[arc]), report(dir.path(), &[same]));
    assert_eq!(arc["accuracy"], same["accuracy"], "{arc} {same}");
    assert_eq!((&arc["chance"], &arc["items"]), (&json!(0.5), &json!(1)));
    fs::write(dir.path().join("q.jsonl"), "{\"ctx\": \"a\"}\n").unwrap();
    let run = |args: &str| run_in(dir.path(), &words(args));
    run("eval --checkpoint run --choices q.jsonl").refused(1, &["q.jsonl:1: no field \"endings\""]);
    run("eval --checkpoint run --choices none.jsonl").refused(1, &["none.jsonl"]);
    run("eval --checkpoint run --choices q.jsonl --data text.txt")
        .refused(2, &["--choices", "--data"]);
    let long = json!({ "ctx": "a", "endings": ["b", "c".repeat(20)], "label": 0 });
    fs::write(dir.path().join("q.jsonl"), format!("{long}\n")).unwrap();
    run("eval --checkpoint run --choices q.jsonl").refused(
        1,
        &["q.jsonl:1: an answer of 21 tokens is longer than the model's context of 16"],
    );
}
