//! Multiple choice: `cllm eval --choices`.
//!
//! As EleutherAI's lm-evaluation-harness has it: an answer's score is the sum of the log-probabilities of
//! its tokens behind the question. It counts as right if the right answer has the highest score
//! (`accuracy`), or the highest divided by the answer's bytes (`accuracy_norm`), which does not favour
//! short answers.
//!
//! Each answer goes through the model behind its question (`score`): all tokens at once take less time
//! than an answer's one by one behind a question that is cached, even if four answers share it.

mod items;
mod score;

use core::fmt::Write as _;
use std::path::PathBuf;

use cllm_core::{Dtype, Isa};
use serde::Serialize;

use crate::error::{Error, Result};
use crate::generate;
use crate::model;
use crate::settings::{LogFormat, Threads};
use crate::statistics::wilson;
use crate::tokenizer::Tokenizer;
use crate::trained::Trained;
use items::Item;
use score::Behind;

/// What `cllm eval --choices` is told.
#[derive(Clone, Debug, PartialEq)]
pub struct ChoiceSettings {
    /// Run folder or checkpoint file.
    pub checkpoint: PathBuf,
    /// Files of JSON lines, `-` for standard input.
    pub files: Vec<String>,
    /// Tokenizer file or folder; `None` is the one beside the checkpoint.
    pub tokenizer: Option<PathBuf>,
    /// Number of threads.
    pub threads: Threads,
    /// Instruction set; `None` is the best that the CPU has.
    pub isa: Option<Isa>,
    /// What the operands of products are rounded to.
    pub dtype: Dtype,
    /// What standard output carries.
    pub log_format: LogFormat,
}

/// The result, as a line of JSON.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Report {
    event: &'static str,
    /// The checkpoint.
    pub checkpoint: String,
    /// Steps it was trained for.
    pub step: u64,
    /// Questions.
    pub items: usize,
    /// Share whose right answer is the likeliest.
    pub accuracy: f64,
    /// 95 % confidence interval of it, Wilson's.
    pub accuracy_interval: [f64; 2],
    /// Share whose right answer is the likeliest by the byte.
    pub accuracy_norm: f64,
    /// 95 % confidence interval of it.
    pub accuracy_norm_interval: [f64; 2],
    /// What answers drawn by chance would reach.
    pub chance: f64,
    /// Questions whose beginning has been left out, for they are longer than the model's context.
    pub cut: usize,
    /// The kernels that computed it.
    pub kernels: String,
}

impl Report {
    fn text(&self) -> String {
        let mut text = format!("checkpoint     {} (step {})\n", self.checkpoint, self.step);
        let shares = [
            ("accuracy", self.accuracy, self.accuracy_interval),
            ("by the byte", self.accuracy_norm, self.accuracy_norm_interval),
        ];
        for (name, share, [low, high]) in shares {
            let [share, low, high] = [share, low, high].map(|x| 100.0 * x);
            // Writing to a String cannot fail.
            let _ = writeln!(text, "{name:<15}{share:.2} % (95 %: {low:.2} to {high:.2})");
        }
        let _ = writeln!(text, "by chance      {:.2} %", 100.0 * self.chance);
        let cut = match self.cut {
            0 => String::new(),
            cut => format!(", {cut} of them without their beginning, to fit into the context"),
        };
        let _ = write!(text, "questions      {}{cut}\nkernels        {}", self.items, self.kernels);
        text
    }
}

/// How many questions these files have.
///
/// # Errors
/// A file that cannot be read, a line that is no question; none at all.
pub(crate) fn questions(files: &[String]) -> Result<usize> {
    Ok(items::read(files)?.len())
}

/// Has the model choose, and prints how often it was right.
///
/// # Errors
/// A missing or damaged checkpoint, tokenizer or file, a line that is no question, a closed standard
/// output.
pub fn choose(settings: &ChoiceSettings) -> Result<()> {
    let report = measure(settings)?;
    let text = match settings.log_format {
        LogFormat::Json => serde_json::to_string(&report)
            .map_err(|e| Error::failure(format!("cannot report: {e}")))?,
        LogFormat::Text => report.text(),
    };
    generate::write(&format!("{text}\n"))
}

/// Has the model choose.
///
/// # Errors
/// As [`choose`], but for standard output.
pub fn measure(settings: &ChoiceSettings) -> Result<Report> {
    let kernels = model::kernels(settings.isa, settings.dtype)?;
    let trained = Trained::open(&settings.checkpoint)?;
    let tokenizer = trained.tokenizer(settings.tokenizer.as_deref())?;
    let most = trained.config().block_size;
    let items = items::read(&settings.files)?;
    let mut encoded = Vec::with_capacity(items.len());
    for item in &items {
        encoded.push(Encoded::new(item, &tokenizer, most)?);
    }
    let workers = model::workers(settings.threads)?;
    let texts: Vec<Behind<'_>> = encoded.iter().flat_map(Encoded::texts).collect();
    let scores = score::scores(&texts, &trained, workers, kernels)?;
    let (mut right, mut at) = ([0; 2], 0);
    for item in &items {
        let scores = &scores[at..at + item.answers.len()];
        at += scores.len();
        let by_byte = scores.iter().zip(&item.answers).map(|(s, answer)| s / answer.len() as f64);
        let by_byte: Vec<f64> = by_byte.collect();
        for (right, scores) in right.iter_mut().zip([scores, &by_byte]) {
            *right += usize::from(best(scores) == item.right);
        }
    }
    let n = items.len();
    let chance = items.iter().map(|item| 1.0 / item.answers.len() as f64).sum::<f64>() / n as f64;
    Ok(Report {
        event: "choices",
        checkpoint: trained.path().display().to_string(),
        step: trained.step(),
        items: n,
        accuracy: right[0] as f64 / n as f64,
        accuracy_interval: wilson(right[0], n),
        accuracy_norm: right[1] as f64 / n as f64,
        accuracy_norm_interval: wilson(right[1], n),
        chance,
        cut: encoded.iter().filter(|item| item.is_cut).count(),
        kernels: kernels.set().to_string(),
    })
}

/// The first of the highest.
fn best(scores: &[f64]) -> usize {
    let higher = |best: usize, i: usize| if scores[i] > scores[best] { i } else { best };
    (1..scores.len()).fold(0, higher)
}

/// A question as tokens.
struct Encoded {
    context: Vec<u32>,
    answers: Vec<Vec<u32>>,
    is_cut: bool,
}

impl Encoded {
    fn new(item: &Item, tokenizer: &Tokenizer, most: usize) -> Result<Self> {
        let refused = |e| Error::failure(format!("{}: {e}", item.origin));
        // A token of a word has the space before it: it goes along with the answer.
        let context = item.context.trim_end();
        let between = match &item.context[context.len()..] {
            "" if context.is_empty() => "",
            "" => " ",
            space => space,
        };
        let text = tokenizer.encode(context.as_bytes()).map_err(refused)?;
        let mut answers = Vec::with_capacity(item.answers.len());
        for answer in &item.answers {
            let space = if answer.starts_with(char::is_whitespace) { "" } else { between };
            let answer = [space, answer].concat();
            answers.push(tokenizer.encode_after(context, &text, &answer).map_err(refused)?);
        }
        let mut context = tokenizer.begin_of_text();
        context.extend(text);
        if context.is_empty() {
            context.push(tokenizer.end_of_text());
        }
        let longest = answers.iter().map(Vec::len).max().unwrap_or(0);
        // The last token of an answer is only predicted.
        let room = (most + 1).saturating_sub(longest);
        if room == 0 {
            return Err(Error::failure(format!(
                "{}: an answer of {longest} tokens is longer than the model's context of {most}",
                item.origin
            )));
        }
        let over = context.len().saturating_sub(room);
        context.drain(..over);
        Ok(Self { context, answers, is_cut: over > 0 })
    }

    /// Each answer behind the question.
    fn texts(&self) -> impl Iterator<Item = Behind<'_>> {
        self.answers.iter().map(|text| Behind { context: &self.context, text })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    #[cfg(feature = "bpe")]
    use crate::tokenizer::BpeTokenizer;

    fn item(context: &str, answers: &[&str]) -> Item {
        let answers = answers.iter().map(|answer| (*answer).to_owned()).collect();
        Item { origin: "t.jsonl:1".to_owned(), context: context.to_owned(), answers, right: 0 }
    }

    #[cfg(feature = "bpe")]
    #[test]
    fn the_space_between_goes_along_with_the_answer() {
        let words = BpeTokenizer::from_words(["The", " cat", " sat", "sat"]).unwrap();
        let tokenizer = Tokenizer::Bpe(Box::new(words));
        for (context, answer) in [("The cat", "sat"), ("The cat ", "sat"), ("The cat", " sat")] {
            let encoded = Encoded::new(&item(context, &[answer]), &tokenizer, 16).unwrap();
            assert_eq!((encoded.context, &encoded.answers[0][..]), (vec![257, 258], &[259][..]));
        }
        // As the harness has it, a line break belongs to the answer too.
        let encoded = Encoded::new(&item("The\n", &["sat"]), &tokenizer, 16).unwrap();
        assert_eq!(encoded.context, [257]);
        assert_eq!(encoded.answers[0][1..], [260]);
        // Without a question texts begin as they do.
        let encoded = Encoded::new(&item("", &["sat"]), &tokenizer, 16).unwrap();
        assert_eq!((encoded.context, &encoded.answers[0][..]), (vec![0], &[260][..]));
    }

    #[test]
    fn questions_are_cut_from_the_left_and_answers_are_not() {
        let item = item("abcdefgh", &["xy", "z"]);
        let fits = Encoded::new(&item, &Tokenizer::Bytes, 10).unwrap();
        assert!(!fits.is_cut && fits.context.len() == 8);
        let cut = Encoded::new(&item, &Tokenizer::Bytes, 4).unwrap();
        assert!(cut.is_cut);
        assert_eq!(cut.context, b"gh".map(u32::from));
        assert_eq!(cut.answers[0], b" xy".map(u32::from));
        let error = Encoded::new(&item, &Tokenizer::Bytes, 2).err().unwrap().to_string();
        assert!(error.starts_with("t.jsonl:1: an answer of 3 tokens"), "{error}");
    }

    #[test]
    fn of_equal_scores_the_first_is_best() {
        assert_eq!(best(&[-3.0, -1.0, -1.0]), 1);
        assert_eq!(best(&[-1.0]), 0);
    }
}
