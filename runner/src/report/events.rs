//! The events of `metrics.jsonl`, gathered by what is drawn of them.
//!
//! Nothing here knows which figures there are: each number that an event says of a step becomes a curve
//! of its own, and events of unknown kinds are kept as they are.

use serde::Serialize;
use serde_json::{Map, Value};

use super::thin::{Points, Thinned, spread, thin};
use super::work::{Teller, Work};

/// Most samples of text, and most events of unknown kinds.
const SAMPLES: usize = 100;

/// What all events of a run say.
#[derive(Clone, Debug, Default)]
pub(super) struct Events {
    starts: Vec<Map<String, Value>>,
    threads: Vec<Map<String, Value>>,
    end: Option<Map<String, Value>>,
    samples: Vec<Map<String, Value>>,
    others: Vec<Map<String, Value>>,
    kinds: Vec<Kind>,
    clock: Clock,
    work: Teller,
}

/// Events of one name that say something of steps.
#[derive(Clone, Debug)]
struct Kind {
    event: String,
    steps: Vec<u64>,
    /// Each as long as `steps` or shorter.
    figures: Vec<(String, Vec<f64>)>,
}

/// How long the run had trained after which step.
#[derive(Clone, Debug, Default)]
struct Clock {
    steps: Vec<u64>,
    seconds: Vec<f64>,
    tokens_per_step: Option<f64>,
    /// No event has said it: seconds follow from the speed.
    is_estimate: bool,
}

/// For the page.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Gathered {
    starts: Vec<Map<String, Value>>,
    threads: Vec<Map<String, Value>>,
    /// `done` or `interrupted`, if the last session has ended.
    end: Option<Map<String, Value>>,
    curves: Vec<Curve>,
    clock: Points,
    clock_is_estimate: bool,
    work: Option<Work>,
    samples: Vec<Map<String, Value>>,
    samples_of: usize,
    others: Vec<Map<String, Value>>,
    others_of: usize,
}

/// One figure over steps.
#[derive(Clone, Debug, Serialize)]
struct Curve {
    event: String,
    key: String,
    #[serde(flatten)]
    points: Thinned,
}

impl Events {
    /// Takes in an event.
    pub(super) fn add(&mut self, name: &str, event: Map<String, Value>) {
        let step = event.get("step").and_then(Value::as_u64);
        match (name, step) {
            ("start", step) => {
                self.end = None;
                self.work.begin(step.unwrap_or(0));
                self.clock.tokens_per_step = event.get("tokens_per_step").and_then(Value::as_f64);
                self.starts.push(event);
            }
            ("threads", _) => self.threads.push(event),
            ("done" | "interrupted", _) => {
                let steps = event.get("steps").and_then(Value::as_u64).or(step);
                self.work.tell(steps.unwrap_or(0), &event);
                self.end = Some(event);
            }
            ("work", Some(step)) => self.work.tell(step, &event),
            ("sample", _) => self.samples.push(event),
            // Of single steps: no curve.
            ("spike", _) => self.others.push(event),
            (_, Some(step)) => {
                self.clock.event(name, step, &event);
                self.figures(name, step, event);
            }
            (_, None) => self.others.push(event),
        }
    }

    /// The curves' next points.
    fn figures(&mut self, name: &str, step: u64, event: Map<String, Value>) {
        let known = self.kinds.iter().position(|kind| kind.event == name);
        let at = known.unwrap_or_else(|| {
            let (event, steps, figures) = (name.to_owned(), Vec::new(), Vec::new());
            self.kinds.push(Kind { event, steps, figures });
            self.kinds.len() - 1
        });
        let kind = &mut self.kinds[at];
        let before = kind.steps.len();
        kind.steps.push(step);
        for (key, value) in event {
            let value = match value {
                Value::Number(number) => number.as_f64().unwrap_or(f64::NAN),
                // As numbers are written that are not finite.
                Value::Null => f64::NAN,
                _ => continue,
            };
            if key == "step" {
                continue;
            }
            let known = kind.figures.iter().position(|(known, _)| *known == key);
            let at = known.unwrap_or_else(|| {
                kind.figures.push((key, Vec::new()));
                kind.figures.len() - 1
            });
            let values = &mut kind.figures[at].1;
            values.resize(before, f64::NAN);
            values.push(value);
        }
    }

    /// All of it, thinned.
    pub(super) fn gathered(&self) -> Gathered {
        let curves = self.kinds.iter().flat_map(|kind| {
            kind.figures.iter().map(|(key, values)| Curve {
                event: kind.event.clone(),
                key: key.clone(),
                points: thin(&kind.steps, values),
            })
        });
        let some = |events: &[Map<String, Value>]| {
            spread(events.len(), SAMPLES).map(|at| events[at].clone()).collect()
        };
        let Clock { steps, seconds, is_estimate, .. } = &self.clock;
        Gathered {
            starts: self.starts.clone(),
            threads: self.threads.clone(),
            end: self.end.clone(),
            curves: curves.collect(),
            clock: thin(steps, seconds).points,
            clock_is_estimate: *is_estimate,
            work: self.work.work(),
            samples: some(&self.samples),
            samples_of: self.samples.len(),
            others: some(&self.others),
            others_of: self.others.len(),
        }
    }
}

impl Clock {
    fn event(&mut self, name: &str, step: u64, event: &Map<String, Value>) {
        let number = |key: &str| event.get(key).and_then(Value::as_f64);
        let last = self.seconds.last().copied().unwrap_or(0.0);
        let now = match (number("seconds"), number("tokens_per_s"), self.tokens_per_step) {
            (Some(seconds), ..) => seconds,
            (None, Some(speed), Some(tokens)) if name == "step" && speed > 0.0 => {
                self.is_estimate = true;
                let steps = step.saturating_sub(self.steps.last().copied().unwrap_or(0));
                last + steps as f64 * tokens / speed
            }
            _ => return,
        };
        if self.steps.last().is_none_or(|last| *last < step) {
            self.steps.push(step);
            self.seconds.push(now.max(last));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn gathered(lines: &[Value]) -> Value {
        let mut events = Events::default();
        for line in lines {
            let event = line.as_object().unwrap().clone();
            events.add(line["event"].as_str().unwrap(), event);
        }
        serde_json::to_value(events.gathered()).unwrap()
    }

    #[test]
    fn every_number_of_a_step_becomes_a_curve() {
        let all = gathered(&[
            json!({"event": "start", "step": 0, "tokens_per_step": 100}),
            json!({"event": "step", "step": 1, "loss": 3.5, "tokens_per_s": 50}),
            json!({"event": "eval", "step": 2, "val_loss": 3.25, "best": true}),
            json!({"event": "step", "step": 3, "loss": null, "brand_new": 7, "tokens_per_s": 100}),
            json!({"event": "odd", "what": "ever"}),
        ]);
        let curve = |event: &str, key: &str| {
            let curves = all["curves"].as_array().unwrap();
            curves.iter().find(|c| c["event"] == event && c["key"] == key).unwrap().clone()
        };
        assert_eq!(curve("step", "loss")["value"], json!([3.5, null]));
        assert_eq!(curve("step", "brand_new")["value"], json!([null, 7.0]));
        assert_eq!(curve("eval", "val_loss")["step"], json!([2]));
        assert_eq!(all["curves"].as_array().unwrap().len(), 4, "{all}");
        assert_eq!(all["others"][0]["what"], "ever");
        assert_eq!((&all["end"], &all["work"]), (&Value::Null, &Value::Null));
        // One step at 50 tokens a second, then two at 100.
        assert_eq!(all["clock"], json!({"step": [1, 3], "value": [2.0, 4.0]}));
        assert_eq!(all["clock_is_estimate"], true);
    }

    #[test]
    fn seconds_that_are_told_are_the_clock() {
        let all = gathered(&[
            json!({"event": "step", "step": 1, "loss": 3.5, "seconds": 0.5}),
            json!({"event": "eval", "step": 1, "val_loss": 3.25, "seconds": 0.75}),
            json!({"event": "done", "steps": 1, "seconds": 1.0}),
        ]);
        assert_eq!(all["clock"], json!({"step": [1], "value": [0.5]}));
        assert_eq!((&all["clock_is_estimate"], &all["end"]["steps"]), (&json!(false), &json!(1)));
    }
}
