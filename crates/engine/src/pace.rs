use std::time::Duration;

/// How long a layer takes for prompt tokens, by how many there are: what measured steps have shown.
///
/// A layer costs a part for reading weights and a part for each token, so few tokens take no longer than many, and many at
/// most as many times longer as there are more of them. That gives a bound for numbers that were never seen.
#[derive(Debug, Default)]
pub(crate) struct Pace {
    /// Microseconds, by the number's power of two.
    layer_us: [Option<f64>; u32::BITS as usize],
}

/// Share of the newest measurement in what is known.
const NEWEST: f64 = 0.5;

impl Pace {
    /// So many layers of a pass of so many tokens took so long.
    pub(crate) fn note(&mut self, tokens: u32, layers: u32, took: Duration) {
        let (Some(class), 1..) = (tokens.checked_ilog2(), layers) else { return };
        let newest = took.as_micros() as f64 / f64::from(layers);
        let known = &mut self.layer_us[class as usize];
        *known = Some(known.map_or(newest, |known| known + NEWEST * (newest - known)));
    }

    /// Layers of a pass of so many tokens that `time` has room for, as far as is known.
    pub(crate) fn layers_in(&self, tokens: u32, time: Duration) -> u32 {
        let layer_us = self.layer_us(tokens).unwrap_or(f64::INFINITY);
        // A float too large for the type becomes its largest value, and 0 / 0 its smallest.
        (time.as_micros() as f64 / layer_us) as u32
    }

    fn layer_us(&self, tokens: u32) -> Option<f64> {
        let class = tokens.checked_ilog2()? as usize;
        let as_long_as_more = self.layer_us[class..].iter().flatten().next().copied();
        as_long_as_more.or_else(|| {
            let (fewer, known) =
                self.layer_us[..class].iter().enumerate().rev().find_map(|(i, us)| Some((i, (*us)?)))?;
            // As many times longer as there can be more.
            Some(known * f64::from(tokens) / f64::from(1_u32 << fewer))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    #[test]
    fn nothing_is_known_at_first_and_one_measurement_bounds_all() {
        let mut pace = Pace::default();
        assert_eq!(pace.layers_in(512, ms(50)), 0);
        pace.note(1000, 2, ms(20));
        assert_eq!(pace.layers_in(600, ms(50)), 5, "of the same class");
        assert_eq!(pace.layers_in(1, ms(50)), 5, "fewer tokens take no longer");
        assert_eq!(
            pace.layers_in(4096, ms(160)),
            2,
            "1000 may be as few as 512, and 4096 take 8 times as long as those"
        );
        pace.note(4096, 1, ms(40));
        assert_eq!(pace.layers_in(4096, ms(160)), 4);
        assert_eq!(pace.layers_in(600, ms(50)), 5);
    }

    #[test]
    fn measurements_are_followed_without_jumping() {
        let mut pace = Pace::default();
        pace.note(64, 4, ms(40));
        pace.note(64, 1, ms(30));
        assert_eq!(pace.layers_in(64, ms(60)), 3);
        (0..10).for_each(|_| pace.note(64, 1, ms(30)));
        assert_eq!(pace.layers_in(64, ms(61)), 2);
    }

    #[test]
    fn nonsense_changes_nothing() {
        let mut pace = Pace::default();
        pace.note(0, 4, ms(40));
        pace.note(4, 0, ms(40));
        assert_eq!(pace.layers_in(4, ms(1000)), 0);
        pace.note(4, 4, Duration::ZERO);
        assert_eq!(pace.layers_in(4, ms(1)), u32::MAX);
        assert_eq!(pace.layers_in(0, ms(1)), 0);
    }
}
