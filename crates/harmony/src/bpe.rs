//! Byte-pair encoding of ordinary text, in linear or near-linear time whatever the input.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};

use regex::Regex;

/// The o200k split, less its last but one alternative `\s+(?!\S)`: [`Pieces`] does that look-ahead by hand, so that
/// an engine without backtracking can do the rest.
const SPLIT: &str = concat!(
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
    r"|\p{N}{1,3}",
    r"| ?[^\s\p{L}\p{N}]+[\r\n/]*",
    r"|\s*[\r\n]+",
    r"|\s+",
);

/// The merge table.
pub(crate) struct Bpe {
    split: Regex,
    ranks: HashMap<Box<[u8]>, u32>,
    longest: usize,
}

impl Bpe {
    /// Builds the table from the tokens' bytes in order of rank.
    pub(crate) fn new<'a>(tokens: impl Iterator<Item = &'a [u8]>) -> Self {
        let ranks: HashMap<Box<[u8]>, u32> = tokens.map(Box::from).zip(0..).collect();
        let longest = ranks.keys().map(|token| token.len()).max().unwrap_or(0);
        let split = Regex::new(SPLIT).expect("the split pattern is valid");
        Self { split, ranks, longest }
    }

    /// Appends the tokens of `text` to `tokens`.
    pub(crate) fn encode_into(&self, text: &str, tokens: &mut Vec<u32>) {
        for piece in (Pieces { split: &self.split, text, at: 0 }) {
            match self.rank(piece.as_bytes()) {
                Some(rank) => tokens.push(rank),
                None => self.merge_into(piece.as_bytes(), tokens),
            }
        }
    }

    fn rank(&self, bytes: &[u8]) -> Option<u32> {
        if bytes.len() > self.longest { None } else { self.ranks.get(bytes).copied() }
    }

    /// Merges the adjacent pair of lowest rank, leftmost first, until none is left.
    fn merge_into(&self, piece: &[u8], tokens: &mut Vec<u32>) {
        let mut parts = Parts::new(piece.len());
        let mut queue: BinaryHeap<Reverse<Merge>> =
            (1..piece.len()).filter_map(|right| self.merge(piece, &parts, right - 1)).map(Reverse).collect();
        while let Some(Reverse(merge)) = queue.pop() {
            if !parts.holds(&merge) {
                continue;
            }
            parts.join(merge.left);
            let before = parts.previous(merge.left);
            queue.extend(before.and_then(|left| self.merge(piece, &parts, left)).map(Reverse));
            queue.extend(self.merge(piece, &parts, merge.left).map(Reverse));
        }
        tokens
            .extend(parts.spans().map(|(start, end)| self.rank(&piece[start..end]).expect("single bytes are tokens")));
    }

    /// The merge of the part that starts at `left` with its right neighbour, if their join is a token.
    fn merge(&self, piece: &[u8], parts: &Parts, left: usize) -> Option<Merge> {
        let middle = parts.end[left];
        let end = *parts.end.get(middle)?;
        Some(Merge { rank: self.rank(&piece[left..end])?, left, middle, end })
    }
}

/// Ordered by rank, then from the left.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Merge {
    rank: u32,
    left: usize,
    middle: usize,
    end: usize,
}

/// A piece cut into parts, as a list linked both ways, indexed by the parts' first bytes.
struct Parts {
    /// Where the part that starts here ends; 0 where no part starts.
    end: Vec<usize>,
    /// Where the part left of the one that starts here starts.
    before: Vec<usize>,
}

impl Parts {
    /// One part per byte.
    fn new(len: usize) -> Self {
        Self { end: (1..=len).collect(), before: (0..len).map(|at| at.wrapping_sub(1)).collect() }
    }

    /// Whether both parts of `merge` are still there as they were.
    fn holds(&self, merge: &Merge) -> bool {
        self.end[merge.left] == merge.middle && self.end[merge.middle] == merge.end
    }

    /// Joins the part that starts at `left` with its right neighbour.
    fn join(&mut self, left: usize) {
        let middle = self.end[left];
        let end = std::mem::replace(&mut self.end[middle], 0);
        self.end[left] = end;
        if let Some(before) = self.before.get_mut(end) {
            *before = left;
        }
    }

    fn previous(&self, left: usize) -> Option<usize> {
        (left > 0).then(|| self.before[left])
    }

    fn spans(&self) -> impl Iterator<Item = (usize, usize)> {
        let mut start = 0;
        std::iter::from_fn(move || {
            let end = *self.end.get(start)?;
            Some((std::mem::replace(&mut start, end), end))
        })
    }
}

/// The pieces of a text that are encoded each on its own.
struct Pieces<'a> {
    split: &'a Regex,
    text: &'a str,
    at: usize,
}

impl<'a> Iterator for Pieces<'a> {
    type Item = &'a str;

    fn next(&mut self) -> Option<&'a str> {
        let found = self.split.find_at(self.text, self.at)?;
        let mut piece = found.as_str();
        // `\s+(?!\S)`: blanks before a word leave their last one to the word.
        let blanks = piece.chars().all(char::is_whitespace) && !piece.ends_with(['\r', '\n']);
        if blanks && found.end() < self.text.len() {
            let last = piece.chars().next_back().map_or(0, char::len_utf8);
            if last < piece.len() {
                piece = &piece[..piece.len() - last];
            }
        }
        self.at = found.start() + piece.len();
        Some(piece)
    }
}
