//! Finds every `unsafe` of a source, and what its comments say of it.
//!
//! Sources are read as token trees: texts and comments are none of it, and bodies of macros are, of which a
//! parser would see nothing. What a comment says is looked up in the lines above the word.

use proc_macro2::{Delimiter, TokenStream, TokenTree};

/// What the word stands before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// A function that asks something of its caller, or a trait that does of whoever implements it.
    Function,
    /// A block, in which such functions are called and pointers are read and written.
    Block,
    /// An implementation of `Send`, `Sync` or of another trait with promises.
    Promise,
    /// Declarations of another language, and attributes that give functions names outside of Rust.
    Outside,
}

/// Who guarantees what a place relies on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Who {
    /// Whoever calls the function that it is in, by that function's own contract.
    Caller,
    /// A check in the lines before.
    Check,
    /// The program of tiles, the engine, a ring's two ends, or a handle's door: what one owns, what is done.
    Order,
    /// A value that is there only where the CPU has the instructions.
    Cpu,
    /// Whoever owns the files.
    User,
    /// The code around, as the comment says: bounds of a loop, sizes of arrays, layouts of types.
    Here,
}

impl Who {
    pub(crate) const ALL: [Self; 6] =
        [Self::Caller, Self::Check, Self::Order, Self::Cpu, Self::User, Self::Here];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Caller => "caller",
            Self::Check => "check",
            Self::Order => "order",
            Self::Cpu => "CPU",
            Self::User => "user",
            Self::Here => "here",
        }
    }

    /// Words that name a guarantor: the one that a comment names first is the one that counts.
    const WORDS: &[(&'static str, Self)] = &[
        ("caller", Self::Caller),
        ("passed on", Self::Caller),
        ("promise", Self::Caller),
        ("vouched", Self::Caller),
        ("owes", Self::Caller),
        ("checked", Self::Check),
        ("the check ", Self::Check),
        ("asked above", Self::Check),
        ("tile owns", Self::Order),
        ("tile's columns", Self::Order),
        ("tile's alone", Self::Order),
        ("are done", Self::Order),
        ("is done", Self::Order),
        ("seat", Self::Order),
        ("ready", Self::Order),
        ("nobody has", Self::Order),
        ("under way", Self::Order),
        ("one tile after", Self::Order),
        ("only written by", Self::Order),
        ("not being updated", Self::Order),
        ("not written after", Self::Order),
        ("nothing else writes", Self::Order),
        ("no other call", Self::Order),
        ("a ring has one", Self::Order),
        ("protocol", Self::Order),
        ("stands for", Self::Cpu),
        ("stand for", Self::Cpu),
        ("x86-64 has", Self::Cpu),
        ("the CPU has", Self::Cpu),
        ("has the instruction", Self::Cpu),
        ("the duty of", Self::User),
    ];

    fn of(because: &str) -> Self {
        let named = Self::WORDS.iter().filter_map(|&(word, who)| Some((because.find(word)?, who)));
        named.min_by_key(|&(at, _)| at).map_or(Self::Here, |(_, who)| who)
    }
}

/// A place where the word stands.
#[derive(Debug)]
pub(crate) struct Site {
    pub(crate) kind: Kind,
    /// Its line, and the last one of what it stands before.
    pub(crate) lines: (usize, usize),
    /// The function, macro or module that it is in, or is.
    pub(crate) item: String,
    /// What `// SAFETY:` or `# Safety` says; empty of functions whose contract is their trait's, or what a macro's
    /// caller says, and of names.
    pub(crate) because: String,
    /// Of blocks and promises.
    pub(crate) who: Option<Who>,
}

/// What is around a token.
#[derive(Clone)]
struct Around {
    item: String,
    /// Functions here have the contract that their trait has.
    of_trait: bool,
    /// Functions here are made by a macro.
    of_macro: bool,
}

/// All places of a source, in order, and which of them have no comment that says why they are sound.
///
/// # Panics
/// If the text is not Rust.
pub(crate) fn sites(path: &str, text: &str) -> (Vec<Site>, Vec<String>) {
    let tokens: TokenStream = text.parse().unwrap_or_else(|e| panic!("{path} is not Rust: {e}"));
    let mut scan =
        Scan { path, lines: text.lines().collect(), sites: Vec::new(), bare: Vec::new() };
    scan.walk(tokens, &Around { item: String::new(), of_trait: false, of_macro: false });
    (scan.sites, scan.bare)
}

struct Scan<'a> {
    path: &'a str,
    lines: Vec<&'a str>,
    sites: Vec<Site>,
    bare: Vec<String>,
}

impl Scan<'_> {
    fn walk(&mut self, tokens: TokenStream, around: &Around) {
        let tokens: Vec<_> = tokens.into_iter().collect();
        let word = |i: usize| match tokens.get(i) {
            Some(TokenTree::Ident(name)) => name.to_string(),
            _ => String::new(),
        };
        let mut around = around.clone();
        for (i, token) in tokens.iter().enumerate() {
            match token {
                TokenTree::Group(group) => self.walk(group.stream(), &around),
                TokenTree::Ident(name) => match name.to_string().as_str() {
                    "fn" | "mod" | "trait" | "struct" if !word(i + 1).is_empty() => {
                        around.item = word(i + 1);
                    }
                    "macro_rules" => {
                        around =
                            Around { item: word(i + 2) + "!", of_trait: false, of_macro: true };
                    }
                    // Not as a type, which stands behind a mark.
                    "impl" if i == 0 || !is_mark_before_type(&tokens[i - 1]) => {
                        let head = tokens[i..].iter().take_while(|t| !is_braced(t));
                        around.of_trait = head.map(ToString::to_string).any(|t| t == "for");
                    }
                    "unsafe" => {
                        let Some(kind) = kind(&tokens[i + 1..]) else { continue };
                        let item = if kind == Kind::Function {
                            let name = (i..)
                                .map(word)
                                .skip_while(|w| w != "fn" && w != "trait")
                                .nth(1)
                                .unwrap();
                            if name.is_empty() { around.item.clone() + "!" } else { name }
                        } else {
                            around.item.clone()
                        };
                        let first = name.span().start().line;
                        let body = tokens[i..].iter().find(|t| is_braced(t));
                        let last = body.map_or(first, |t| t.span().end().line);
                        self.add(kind, item, (first, last), around.of_trait || around.of_macro);
                    }
                    _ => {}
                },
                _ => {}
            }
        }
    }

    fn add(&mut self, kind: Kind, item: String, lines: (usize, usize), is_elsewhere: bool) {
        let because = self.because(kind, lines.0);
        let none_needed = kind == Kind::Outside || kind == Kind::Function && is_elsewhere;
        if because.is_empty() && !none_needed {
            let wanted = if kind == Kind::Function { "/// # Safety" } else { "// SAFETY:" };
            self.bare.push(format!("{}:{}: `{item}` has no `{wanted}`", self.path, lines.0));
        }
        // Said of another place: as it was there.
        let before = self.sites.iter().rev().find_map(|site| site.who);
        let who = match kind {
            Kind::Function | Kind::Outside => None,
            _ if because.starts_with("as ") => Some(before.unwrap_or(Who::of(&because))),
            _ => Some(Who::of(&because)),
        };
        self.sites.push(Site { kind, lines, item, because, who });
    }

    /// What the comment above a line says, from the statement or the item that it is in upwards; empty if there is none.
    fn because(&self, kind: Kind, line: usize) -> String {
        let (mark, comment) =
            if kind == Kind::Function { ("/// # Safety", "///") } else { ("// SAFETY:", "//") };
        for at in (0..line).rev() {
            let text = self.lines[at].trim();
            let mark = if text.starts_with("// SAFETY:") { "// SAFETY:" } else { mark };
            if let Some(said) = text.strip_prefix(mark) {
                let more = self.lines[at + 1..].iter().map(|line| line.trim());
                let more = more.take_while(|line| line.starts_with(comment));
                let words: Vec<_> = core::iter::once(said)
                    .chain(more)
                    .map(|l| l.trim_start_matches('/').trim())
                    .collect();
                return words.join(" ").trim().to_owned();
            }
            // The end of what stands before.
            let is_comment = text.starts_with("//") || text.starts_with('#');
            if at + 1 < line && !is_comment && (text.is_empty() || text.ends_with([';', '}'])) {
                break;
            }
        }
        String::new()
    }
}

fn is_braced(token: &TokenTree) -> bool {
    matches!(token, TokenTree::Group(group) if group.delimiter() == Delimiter::Brace)
}

fn is_mark_before_type(token: &TokenTree) -> bool {
    matches!(token, TokenTree::Punct(mark) if ">&:=+<,".contains(mark.as_char()))
}

/// What the word stands before, of the tokens behind it; nothing before the type of a function.
fn kind(behind: &[TokenTree]) -> Option<Kind> {
    let texts: Vec<_> = behind.iter().take(4).map(ToString::to_string).collect();
    let is_name = |i: usize| match behind.get(i) {
        // Of a macro, `$name`.
        Some(TokenTree::Punct(mark)) => mark.as_char() == '$',
        token => matches!(token, Some(TokenTree::Ident(_))),
    };
    let text = |i: usize| texts.get(i).map_or("", String::as_str);
    let function = |i: usize| is_name(i).then_some(Kind::Function);
    match (behind.first(), text(0)) {
        (Some(token), _) if is_braced(token) => Some(Kind::Block),
        (Some(TokenTree::Group(_)), _) => Some(Kind::Outside),
        (_, "fn") => function(1),
        (_, "extern") if text(1) == "fn" => function(2),
        (_, "extern") if text(2) == "fn" => function(3),
        (_, "extern") => Some(Kind::Outside),
        (_, "trait") => Some(Kind::Function),
        (_, "impl") => Some(Kind::Promise),
        _ => panic!("`unsafe {}` is of no kind that is known", texts.join(" ")),
    }
}
