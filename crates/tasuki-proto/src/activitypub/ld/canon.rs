//! URDNA2015: one text for all ways to write the same graph, whatever its blank nodes are called.
//!
//! The graphs here come from trees of JSON, so nearly all blank nodes differ by their own properties. Where they do not, the
//! algorithm tries permutations, and a document can be made so that it tries for ever: the work is counted, and a document
//! that needs too much is refused.

use std::collections::{BTreeMap, HashMap};
use std::fmt::Write as _;

use sha2::{Digest as _, Sha256};

use super::LdError;

/// Hashes that one canonicalization may take; an ordinary post takes fewer than a hundred.
const MAX_HASHES: usize = 20_000;
/// How deep the comparison of alike blank nodes goes.
const MAX_DEPTH: usize = 48;

/// Subject or object: its N-Quads text, or a blank node by number.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Term {
    Fixed(String),
    Blank(usize),
}

/// A statement of the default graph.
#[derive(Debug, Clone)]
pub(super) struct Triple {
    pub(super) subject: Term,
    /// With its angle brackets.
    pub(super) predicate: String,
    pub(super) object: Term,
}

impl Triple {
    fn line(&self, name: impl Fn(usize) -> String) -> String {
        let text = |term: &Term| match term {
            Term::Fixed(text) => text.clone(),
            Term::Blank(number) => name(*number),
        };
        format!(
            "{} {} {} .\n",
            text(&self.subject),
            self.predicate,
            text(&self.object)
        )
    }
}

/// The canonical N-Quads of a graph with `blanks` blank nodes.
pub(super) fn canonicalize(triples: &[Triple], blanks: usize) -> Result<String, LdError> {
    let mut about: Vec<Vec<usize>> = vec![Vec::new(); blanks];
    for (index, triple) in triples.iter().enumerate() {
        for term in [&triple.subject, &triple.object] {
            if let Term::Blank(number) = term
                && about[*number].last() != Some(&index)
            {
                about[*number].push(index);
            }
        }
    }
    let mut work = Work {
        triples,
        about,
        first: Vec::new(),
        canonical: Issuer::new("_:c14n"),
        hashes: 0,
    };
    work.name_all()?;
    let mut lines: Vec<String> = triples
        .iter()
        .map(|triple| triple.line(|number| work.canonical.name(number).unwrap_or_default()))
        .collect();
    lines.sort_unstable();
    lines.dedup();
    Ok(lines.concat())
}

/// Gives out names in order.
#[derive(Debug, Clone)]
struct Issuer {
    prefix: &'static str,
    given: HashMap<usize, usize>,
    order: Vec<usize>,
}

impl Issuer {
    fn new(prefix: &'static str) -> Self {
        Self {
            prefix,
            given: HashMap::new(),
            order: Vec::new(),
        }
    }

    fn name(&self, node: usize) -> Option<String> {
        self.given
            .get(&node)
            .map(|number| format!("{}{number}", self.prefix))
    }

    fn issue(&mut self, node: usize) -> String {
        let next = self.order.len();
        let number = *self.given.entry(node).or_insert_with(|| {
            self.order.push(node);
            next
        });
        format!("{}{number}", self.prefix)
    }
}

struct Work<'a> {
    triples: &'a [Triple],
    /// The triples that speak of each blank node.
    about: Vec<Vec<usize>>,
    /// Each node's hash by its own triples.
    first: Vec<String>,
    canonical: Issuer,
    hashes: usize,
}

impl Work<'_> {
    fn name_all(&mut self) -> Result<(), LdError> {
        self.first = (0..self.about.len())
            .map(|node| self.first_degree(node))
            .collect::<Result<_, _>>()?;
        let mut alike: BTreeMap<String, Vec<usize>> = BTreeMap::new();
        for (node, hash) in self.first.iter().enumerate() {
            alike.entry(hash.clone()).or_default().push(node);
        }
        for nodes in alike.values().filter(|nodes| nodes.len() == 1) {
            self.canonical.issue(nodes[0]);
        }
        for nodes in alike.values().filter(|nodes| nodes.len() > 1) {
            let mut paths = Vec::new();
            for &node in nodes {
                if self.canonical.given.contains_key(&node) {
                    continue;
                }
                let mut issuer = Issuer::new("_:b");
                issuer.issue(node);
                paths.push(self.n_degree(node, issuer, 0)?);
            }
            paths.sort_by(|a, b| a.0.cmp(&b.0));
            for (_, issuer) in paths {
                for node in issuer.order {
                    self.canonical.issue(node);
                }
            }
        }
        Ok(())
    }

    fn first_degree(&mut self, node: usize) -> Result<String, LdError> {
        let mut lines: Vec<String> = self.about[node]
            .iter()
            .map(|&index| {
                self.triples[index].line(|other| if other == node { "_:a" } else { "_:z" }.to_owned())
            })
            .collect();
        lines.sort_unstable();
        self.hash(&lines.concat())
    }

    fn related(
        &mut self,
        node: usize,
        predicate: &str,
        issuer: &Issuer,
        place: char,
    ) -> Result<String, LdError> {
        let name = self
            .canonical
            .name(node)
            .or_else(|| issuer.name(node))
            .unwrap_or_else(|| self.first[node].clone());
        self.hash(&format!("{place}{predicate}{name}"))
    }

    /// Hash N-Degree Quads.
    fn n_degree(
        &mut self,
        node: usize,
        mut issuer: Issuer,
        depth: usize,
    ) -> Result<(String, Issuer), LdError> {
        if depth > MAX_DEPTH {
            return Err(LdError::TooMuch("alike blank nodes"));
        }
        let mut neighbours: BTreeMap<String, Vec<usize>> = BTreeMap::new();
        for index in self.about[node].clone() {
            let triple = self.triples[index].clone();
            for (term, place) in [(triple.subject, 's'), (triple.object, 'o')] {
                if let Term::Blank(other) = term
                    && other != node
                {
                    let hash = self.related(other, &triple.predicate, &issuer, place)?;
                    neighbours.entry(hash).or_default().push(other);
                }
            }
        }
        let mut data = String::new();
        for (hash, mut nodes) in neighbours {
            data.push_str(&hash);
            nodes.sort_unstable();
            let mut best: Option<(String, Issuer)> = None;
            loop {
                if let Some(found) = self.path(&nodes, &issuer, best.as_ref().map(|b| b.0.as_str()), depth)? {
                    best = Some(found);
                }
                if !next_permutation(&mut nodes) {
                    break;
                }
            }
            if let Some((path, after)) = best {
                data.push_str(&path);
                issuer = after;
            }
        }
        Ok((self.hash(&data)?, issuer))
    }

    /// The path through one order of nodes, unless it is not better than `best`.
    fn path(
        &mut self,
        nodes: &[usize],
        issuer: &Issuer,
        best: Option<&str>,
        depth: usize,
    ) -> Result<Option<(String, Issuer)>, LdError> {
        self.count()?;
        let mut issuer = issuer.clone();
        let mut path = String::new();
        let mut deeper = Vec::new();
        let is_worse = |path: &str| best.is_some_and(|best| path.len() >= best.len() && path > best);
        for &node in nodes {
            match self.canonical.name(node) {
                Some(name) => path.push_str(&name),
                None => {
                    if issuer.name(node).is_none() {
                        deeper.push(node);
                    }
                    path.push_str(&issuer.issue(node));
                }
            }
            if is_worse(&path) {
                return Ok(None);
            }
        }
        for node in deeper {
            let (hash, after) = self.n_degree(node, issuer.clone(), depth + 1)?;
            path.push_str(&issuer.issue(node));
            let _ = write!(path, "<{hash}>");
            issuer = after;
            if is_worse(&path) {
                return Ok(None);
            }
        }
        Ok(best
            .is_none_or(|best| path.as_str() < best)
            .then_some((path, issuer)))
    }

    fn hash(&mut self, text: &str) -> Result<String, LdError> {
        self.count()?;
        Ok(sha256_hex(text))
    }

    fn count(&mut self) -> Result<(), LdError> {
        self.hashes += 1;
        if self.hashes > MAX_HASHES {
            return Err(LdError::TooMuch("alike blank nodes"));
        }
        Ok(())
    }
}

/// The next order of `nodes`, which starts sorted; false after the last.
fn next_permutation(nodes: &mut [usize]) -> bool {
    let Some(pivot) = nodes.windows(2).rposition(|pair| pair[0] < pair[1]) else {
        return false;
    };
    let Some(other) = nodes.iter().rposition(|node| *node > nodes[pivot]) else {
        return false;
    };
    nodes.swap(pivot, other);
    nodes[pivot + 1..].reverse();
    true
}

/// Escapes a literal. RDFC-1.0 escapes all control characters, URDNA2015 only those that break a line: programs do either.
pub(super) fn escape(text: &str, all_controls: bool) -> String {
    let mut out = String::with_capacity(text.len() + 2);
    for c in text.chars() {
        match c {
            '\\' => out.push_str("\\\\"),
            '"' => out.push_str("\\\""),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' if all_controls => out.push_str("\\t"),
            '\u{8}' if all_controls => out.push_str("\\b"),
            '\u{c}' if all_controls => out.push_str("\\f"),
            '\0'..='\u{1f}' | '\u{7f}' if all_controls => {
                let _ = write!(out, "\\u{:04X}", u32::from(c));
            }
            c => out.push(c),
        }
    }
    out
}

/// Lower-case hexadecimal SHA-256.
pub(super) fn sha256_hex(text: &str) -> String {
    Sha256::digest(text)
        .iter()
        .fold(String::with_capacity(64), |mut out, byte| {
            let _ = write!(out, "{byte:02x}");
            out
        })
}
