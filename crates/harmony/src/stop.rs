//! Stop strings in streamed text.

/// Ends visible text before the first stop string, whatever pieces it arrives in.
///
/// Text that may yet turn out to be the beginning of a stop string is held back. The string that is complete first
/// wins; of several complete at once, the one that began first.
///
/// ```
/// use tandem_harmony::StopStrings;
///
/// let mut stops = StopStrings::new(["\n\n".to_string()]);
/// assert_eq!(stops.push("one\n").text, "one");
/// let output = stops.push("\ntwo");
/// assert_eq!((output.text.as_str(), output.matched), ("", Some(0)));
/// ```
#[derive(Clone, Debug, Default)]
pub struct StopStrings {
    stops: Vec<String>,
    held: String,
    matched: Option<usize>,
}

/// What [`StopStrings::push`] lets through.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StopOutput {
    /// The text to show.
    pub text: String,
    /// The index of the stop string found, once one is. No text follows.
    pub matched: Option<usize>,
}

impl StopStrings {
    /// A matcher for `stops`. An empty string among them never matches.
    pub fn new(stops: impl IntoIterator<Item = String>) -> Self {
        Self { stops: stops.into_iter().collect(), ..Self::default() }
    }

    /// Takes more text and returns what may be shown.
    pub fn push(&mut self, text: &str) -> StopOutput {
        if self.matched.is_some() {
            return StopOutput { text: String::new(), matched: self.matched };
        }
        self.held.push_str(text);
        let shown = match self.first_match() {
            Some((start, index)) => {
                self.matched = Some(index);
                start
            }
            None => self.held.len() - self.partial_len(),
        };
        let text = self.held.drain(..shown).collect();
        StopOutput { text, matched: self.matched }
    }

    /// Ends the text and returns what was held back: nothing after a match.
    pub fn finish(&mut self) -> String {
        let held = std::mem::take(&mut self.held);
        if self.matched.is_some() { String::new() } else { held }
    }

    /// The start and the index of the stop string in the held text that ends first.
    fn first_match(&self) -> Option<(usize, usize)> {
        let stops = self.stops.iter().enumerate().filter(|(_, stop)| !stop.is_empty());
        stops
            .filter_map(|(index, stop)| self.held.find(stop.as_str()).map(|start| (start + stop.len(), start, index)))
            .min()
            .map(|(_, start, index)| (start, index))
    }

    /// The length of the longest end of the held text that begins a stop string.
    fn partial_len(&self) -> usize {
        let longest = self.stops.iter().map(String::len).max().unwrap_or(0);
        let earliest = self.held.len().saturating_sub(longest);
        let mut starts = (earliest..self.held.len()).filter(|&at| self.held.is_char_boundary(at));
        let begins = |at: usize| self.stops.iter().any(|stop| stop.starts_with(&self.held[at..]));
        starts.find(|&at| begins(at)).map_or(0, |at| self.held.len() - at)
    }
}
