//! Documents of the reference data set, with something to learn at each scale.
//!
//! - Words: each verb likes certain objects and each noun certain adjectives
//!   and verbs (bigrams); ranks follow Zipf's law.
//! - Sentences: subject and verb agree in number, determiners with nouns,
//!   pronouns with the person they stand for; clauses nest one deep.
//! - Paragraphs: one tense throughout.
//! - Documents: a topic chooses most nouns and verbs; a few people recur, each
//!   with a trade and a home that stay theirs for the document.

use super::dice::{Dice, Zipf};
use super::lexicon::{Lexicon, byte, opening, small};

const TOPICS: usize = 40;
/// Words of a kind that belong to one topic.
const TOPIC_NOUNS: usize = 60;
const TOPIC_VERBS: usize = 36;
const TOPIC_ADJECTIVES: usize = 48;
/// Words that one word likes to go with.
const LIKED: usize = 6;

struct Topic {
    nouns: Vec<u16>,
    verbs: Vec<u16>,
    adjectives: Vec<u16>,
}

/// The language: its words, and which of them go together.
pub(super) struct Grammar {
    pub(super) lexicon: Lexicon,
    topics: Vec<Topic>,
    liked_adjectives: Vec<[u16; LIKED]>,
    liked_verbs: Vec<[u16; LIKED]>,
    liked_objects: Vec<[u16; LIKED]>,
    liked_adverbs: Vec<[u16; LIKED]>,
    by_rank: Ranks,
}

struct Ranks {
    liked: Zipf,
    nouns: Zipf,
    verbs: Zipf,
    adjectives: Zipf,
    topic_nouns: Zipf,
    topic_verbs: Zipf,
    topic_adjectives: Zipf,
    names: Zipf,
}

struct Person {
    name: usize,
    female: bool,
    trade: u16,
    home: u32,
}

/// What stays the same through a document or a paragraph.
struct Scene {
    topic: usize,
    people: Vec<Person>,
    past: bool,
    /// The person whom a pronoun means.
    last: usize,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Number {
    One,
    Many,
}

impl Grammar {
    /// The language of this seed.
    pub(super) fn new(seed: u64) -> Self {
        let dice = &mut Dice::new(seed);
        let lexicon = Lexicon::new(dice);
        let (nouns, verbs) = (lexicon.nouns.len(), lexicon.verbs.len());
        let (adjectives, adverbs) = (lexicon.adjectives.len(), lexicon.adverbs.len());
        let topics = (0..TOPICS)
            .map(|_| Topic {
                nouns: pick(dice, nouns, TOPIC_NOUNS),
                verbs: pick(dice, verbs, TOPIC_VERBS),
                adjectives: pick(dice, adjectives, TOPIC_ADJECTIVES),
            })
            .collect();
        Self {
            topics,
            liked_adjectives: (0..nouns).map(|_| liked(dice, adjectives)).collect(),
            liked_verbs: (0..nouns).map(|_| liked(dice, verbs)).collect(),
            liked_objects: (0..verbs).map(|_| liked(dice, nouns)).collect(),
            liked_adverbs: (0..verbs).map(|_| liked(dice, adverbs)).collect(),
            by_rank: Ranks {
                liked: Zipf::new(LIKED),
                nouns: Zipf::new(nouns),
                verbs: Zipf::new(verbs),
                adjectives: Zipf::new(adjectives),
                topic_nouns: Zipf::new(TOPIC_NOUNS),
                topic_verbs: Zipf::new(TOPIC_VERBS),
                topic_adjectives: Zipf::new(TOPIC_ADJECTIVES),
                names: Zipf::new(lexicon.names.len()),
            },
            lexicon,
        }
    }

    /// Appends a document to `ids`: paragraphs, each ended by an empty line.
    /// A document is 100 to 1,500 tokens long.
    pub(super) fn document(&self, dice: &mut Dice, ids: &mut Vec<u32>) {
        let people = (0..2 + dice.below(3))
            .map(|_| {
                let name = dice.zipf(&self.by_rank.names);
                let trade = dice.below(self.lexicon.nouns.len() as u32) as u16;
                let home = dice.choose(&self.lexicon.places);
                // Whether a name is a woman's is a fact of the language.
                Person { name, female: name.is_multiple_of(2), trade, home }
            })
            .collect();
        let topic = dice.below(TOPICS as u32) as usize;
        let mut scene = Scene { topic, people, past: false, last: 0 };
        for _ in 0..2 + dice.below(5) {
            scene.past = dice.percent(60);
            let sentences = 4 + dice.below(6);
            for sentence in 0..sentences {
                self.sentence(dice, &mut scene, sentence == 0, ids);
            }
            ids.extend([byte(b'\n'); 2]);
        }
    }

    fn sentence(&self, dice: &mut Dice, scene: &mut Scene, first: bool, ids: &mut Vec<u32>) {
        if dice.percent(25) {
            let word = dice.choose(&["Although", "While", "After", "Before", "Because"]);
            ids.push(opening(word, first));
            let subject = self.noun_phrase(dice, scene, None, ids);
            self.predicate(dice, scene, subject, ids);
            ids.push(byte(b','));
            let subject = self.noun_phrase(dice, scene, None, ids);
            self.predicate(dice, scene, subject, ids);
        } else {
            let subject = self.subject(dice, scene, first, ids);
            self.predicate(dice, scene, subject, ids);
            if dice.percent(30) {
                let word = dice.choose(&["and", "but", "because", "while", "until"]);
                ids.push(small(word));
                let subject = self.noun_phrase(dice, scene, None, ids);
                self.predicate(dice, scene, subject, ids);
            }
        }
        ids.push(byte(b'.'));
    }

    /// The subject at the start of a sentence: a person, a pronoun or a noun.
    /// The result is its number and the noun whose verbs fit.
    fn subject(
        &self,
        dice: &mut Dice,
        scene: &mut Scene,
        first: bool,
        ids: &mut Vec<u32>,
    ) -> (Number, u16) {
        let person = &scene.people[scene.last];
        if !first && dice.percent(25) {
            ids.push(opening(if person.female { "She" } else { "He" }, false));
            return (Number::One, person.trade);
        }
        if dice.percent(35) {
            scene.last = dice.below(scene.people.len() as u32) as usize;
            let person = &scene.people[scene.last];
            let names = if first { &self.lexicon.opening_names } else { &self.lexicon.names };
            ids.push(names[person.name]);
            if dice.percent(40) {
                ids.extend([byte(b','), small("the")]);
                ids.push(self.lexicon.nouns[person.trade as usize].singular);
                ids.extend([small("of"), person.home, byte(b',')]);
            }
            return (Number::One, person.trade);
        }
        self.noun_phrase(dice, scene, Some(first), ids)
    }

    /// Determiner, adjectives and noun, sometimes with a clause of its own;
    /// `opens` when it begins a sentence (and whether also a paragraph).
    fn noun_phrase(
        &self,
        dice: &mut Dice,
        scene: &Scene,
        opens: Option<bool>,
        ids: &mut Vec<u32>,
    ) -> (Number, u16) {
        let noun = self.noun(dice, scene);
        let number = self.noun_group(dice, scene, noun, opens, ids);
        match dice.below(100) {
            0..8 => {
                ids.push(small(if number == Number::One { "which" } else { "that" }));
                self.predicate(dice, scene, (number, noun), ids);
            }
            8..20 => {
                ids.push(small(dice.choose(&["beneath", "beside", "without", "against"])));
                let other = self.noun(dice, scene);
                self.noun_group(dice, scene, other, None, ids);
            }
            _ => {}
        }
        (number, noun)
    }

    fn noun_group(
        &self,
        dice: &mut Dice,
        scene: &Scene,
        noun: u16,
        opens: Option<bool>,
        ids: &mut Vec<u32>,
    ) -> Number {
        let number = if dice.percent(60) { Number::One } else { Number::Many };
        let determiner = match number {
            Number::One => dice.choose(&["the", "the", "this", "every", "another"]),
            Number::Many => dice.choose(&["the", "these", "several", "many"]),
        };
        ids.push(match opens {
            Some(paragraph) => opening(determiner, paragraph),
            None => small(determiner),
        });
        if dice.percent(55) {
            ids.push(self.adjective(dice, scene, noun));
        }
        let forms = self.lexicon.nouns[noun as usize];
        ids.push(if number == Number::One { forms.singular } else { forms.plural });
        number
    }

    /// A verb that agrees with its subject, an object, an adverb, a place.
    fn predicate(
        &self,
        dice: &mut Dice,
        scene: &Scene,
        (number, subject): (Number, u16),
        ids: &mut Vec<u32>,
    ) {
        let verb = self.verb(dice, scene, subject);
        if dice.percent(22) {
            ids.push(self.adverb(dice, verb));
        }
        let forms = self.lexicon.verbs[verb as usize];
        ids.push(match (scene.past, number) {
            (true, _) => forms.past,
            (false, Number::One) => forms.singular,
            (false, Number::Many) => forms.plural,
        });
        let object = if dice.percent(60) {
            self.liked_objects[verb as usize][dice.zipf(&self.by_rank.liked)]
        } else {
            self.noun(dice, scene)
        };
        self.noun_group(dice, scene, object, None, ids);
        match dice.below(100) {
            0..14 => {
                let home = scene.people[scene.last].home;
                ids.push(small(dice.choose(&["in", "from", "towards", "through"])));
                ids.push(if dice.percent(80) { home } else { dice.choose(&self.lexicon.places) });
            }
            14..30 => ids.push(self.adverb(dice, verb)),
            30..44 => {
                let names = &scene.people[dice.below(scene.people.len() as u32) as usize];
                ids.extend([small("with"), self.lexicon.names[names.name]]);
            }
            _ => {}
        }
    }

    fn noun(&self, dice: &mut Dice, scene: &Scene) -> u16 {
        if dice.percent(75) {
            self.topics[scene.topic].nouns[dice.zipf(&self.by_rank.topic_nouns)]
        } else {
            dice.zipf(&self.by_rank.nouns) as u16
        }
    }

    fn adjective(&self, dice: &mut Dice, scene: &Scene, noun: u16) -> u32 {
        let place = match dice.below(100) {
            0..60 => self.liked_adjectives[noun as usize][dice.zipf(&self.by_rank.liked)],
            60..85 => {
                self.topics[scene.topic].adjectives[dice.zipf(&self.by_rank.topic_adjectives)]
            }
            _ => dice.zipf(&self.by_rank.adjectives) as u16,
        };
        self.lexicon.adjectives[place as usize]
    }

    fn verb(&self, dice: &mut Dice, scene: &Scene, subject: u16) -> u16 {
        match dice.below(100) {
            0..50 => self.liked_verbs[subject as usize][dice.zipf(&self.by_rank.liked)],
            50..85 => self.topics[scene.topic].verbs[dice.zipf(&self.by_rank.topic_verbs)],
            _ => dice.zipf(&self.by_rank.verbs) as u16,
        }
    }

    fn adverb(&self, dice: &mut Dice, verb: u16) -> u32 {
        let place = if dice.percent(80) {
            self.liked_adverbs[verb as usize][dice.zipf(&self.by_rank.liked)] as usize
        } else {
            dice.below(self.lexicon.adverbs.len() as u32) as usize
        };
        self.lexicon.adverbs[place]
    }
}

/// `count` different numbers below `n`, in an order drawn.
fn pick(dice: &mut Dice, n: usize, count: usize) -> Vec<u16> {
    let mut all: Vec<u16> = (0..n as u16).collect();
    for place in 0..count {
        let other = place + dice.below((n - place) as u32) as usize;
        all.swap(place, other);
    }
    all.truncate(count);
    all
}

fn liked(dice: &mut Dice, n: usize) -> [u16; LIKED] {
    core::array::from_fn(|_| dice.below(n as u32) as u16)
}
