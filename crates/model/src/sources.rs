//! Row sources made of other row sources.

use std::io;
use std::ops::Range;

use tandem_backend::RowSource;

/// Checks what every source is promised about a `read`, and says how many rows it asks for.
pub(crate) fn rows_asked(source: &dyn RowSource, first: usize, out: &[u8]) -> io::Result<usize> {
    let rows = out.len() / source.row_bytes().max(1);
    if rows * source.row_bytes() != out.len() || first.checked_add(rows).is_none_or(|end| end > source.rows()) {
        let what = format!(
            "{} bytes from row {first} of a source of {} rows of {} bytes",
            out.len(),
            source.rows(),
            source.row_bytes()
        );
        return Err(io::Error::new(io::ErrorKind::InvalidInput, what));
    }
    Ok(rows)
}

/// The rows of several sources, one source after another.
pub struct Concat<'a> {
    parts: Vec<Box<dyn RowSource + 'a>>,
}

impl<'a> Concat<'a> {
    /// All parts have rows of the same width.
    ///
    /// # Panics
    /// If there are no parts or their widths differ: a bug of the caller.
    pub fn new(parts: Vec<Box<dyn RowSource + 'a>>) -> Self {
        assert!(!parts.is_empty() && parts.iter().all(|part| part.row_bytes() == parts[0].row_bytes()));
        Self { parts }
    }
}

impl RowSource for Concat<'_> {
    fn rows(&self) -> usize {
        self.parts.iter().map(|part| part.rows()).sum()
    }

    fn row_bytes(&self) -> usize {
        self.parts[0].row_bytes()
    }

    fn read(&self, first: usize, out: &mut [u8]) -> io::Result<()> {
        rows_asked(self, first, out)?;
        let (mut skip, mut rest) = (first, out);
        for part in &self.parts {
            if skip >= part.rows() {
                skip -= part.rows();
                continue;
            }
            let bytes = rest.len().min((part.rows() - skip) * part.row_bytes());
            let (head, tail) = rest.split_at_mut(bytes);
            if !head.is_empty() {
                part.read(skip, head)?;
            }
            (skip, rest) = (0, tail);
        }
        Ok(())
    }
}

/// Of every `period` rows of a source, those in `keep`: a shard's rows of each expert, or with one period a plain range.
pub struct RowCut<'a> {
    source: Box<dyn RowSource + 'a>,
    period: usize,
    keep: Range<usize>,
}

impl<'a> RowCut<'a> {
    /// `period` divides the source's rows and `keep` lies within it, not empty.
    ///
    /// # Panics
    /// If that is not so: a bug of the caller.
    pub fn new(source: Box<dyn RowSource + 'a>, period: usize, keep: Range<usize>) -> Self {
        assert!(period > 0 && source.rows().is_multiple_of(period) && keep.start < keep.end && keep.end <= period);
        Self { source, period, keep }
    }

    /// The rows in `keep`.
    ///
    /// # Panics
    /// If `keep` is empty or not within the source: a bug of the caller.
    pub fn range(source: Box<dyn RowSource + 'a>, keep: Range<usize>) -> Self {
        let rows = source.rows();
        Self::new(source, rows, keep)
    }
}

impl RowSource for RowCut<'_> {
    fn rows(&self) -> usize {
        self.source.rows() / self.period * self.keep.len()
    }

    fn row_bytes(&self) -> usize {
        self.source.row_bytes()
    }

    fn read(&self, first: usize, out: &mut [u8]) -> io::Result<()> {
        rows_asked(self, first, out)?;
        let (mut row, mut rest) = (first, out);
        while !rest.is_empty() {
            let (period, within) = (row / self.keep.len(), row % self.keep.len());
            let run = (self.keep.len() - within).min(rest.len() / self.row_bytes());
            let (head, tail) = rest.split_at_mut(run * self.row_bytes());
            self.source.read(period * self.period + self.keep.start + within, head)?;
            (row, rest) = (row + run, tail);
        }
        Ok(())
    }
}

/// A range of the bytes of every row of a source: a shard's columns.
pub struct ColumnCut<'a> {
    source: Box<dyn RowSource + 'a>,
    keep: Range<usize>,
}

/// Whole rows are read through a buffer of about this size.
const STAGING_BYTES: usize = 256 << 10;

impl<'a> ColumnCut<'a> {
    /// `keep` lies within a row, not empty.
    ///
    /// # Panics
    /// If that is not so: a bug of the caller.
    pub fn new(source: Box<dyn RowSource + 'a>, keep: Range<usize>) -> Self {
        assert!(keep.start < keep.end && keep.end <= source.row_bytes());
        Self { source, keep }
    }
}

impl RowSource for ColumnCut<'_> {
    fn rows(&self) -> usize {
        self.source.rows()
    }

    fn row_bytes(&self) -> usize {
        self.keep.len()
    }

    fn read(&self, first: usize, out: &mut [u8]) -> io::Result<()> {
        let rows = rows_asked(self, first, out)?;
        let whole = self.source.row_bytes();
        let staged = (STAGING_BYTES / whole).clamp(1, rows.max(1));
        let mut staging = vec![0; staged * whole];
        for (i, chunk) in out.chunks_mut(staged * self.keep.len()).enumerate() {
            let staging = &mut staging[..chunk.len() / self.keep.len() * whole];
            self.source.read(first + i * staged, staging)?;
            for (row, kept) in staging.chunks(whole).zip(chunk.chunks_mut(self.keep.len())) {
                kept.copy_from_slice(&row[self.keep.clone()]);
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Rows whose bytes count up.
    struct Counting {
        rows: usize,
        row_bytes: usize,
        from: u8,
    }

    impl RowSource for Counting {
        fn rows(&self) -> usize {
            self.rows
        }

        fn row_bytes(&self) -> usize {
            self.row_bytes
        }

        fn read(&self, first: usize, out: &mut [u8]) -> io::Result<()> {
            rows_asked(self, first, out)?;
            let start = first * self.row_bytes;
            out.iter_mut().enumerate().for_each(|(i, byte)| *byte = self.from.wrapping_add((start + i) as u8));
            Ok(())
        }
    }

    fn counting(rows: usize, row_bytes: usize, from: u8) -> Box<dyn RowSource> {
        Box::new(Counting { rows, row_bytes, from })
    }

    /// The whole source, after checking that every partial read gives the same bytes.
    fn all(source: &dyn RowSource) -> Vec<u8> {
        let (rows, row_bytes) = (source.rows(), source.row_bytes());
        let mut whole = vec![0; rows * row_bytes];
        source.read(0, &mut whole).unwrap();
        for first in 0..rows {
            for end in first..=rows {
                let mut part = vec![0; (end - first) * row_bytes];
                source.read(first, &mut part).unwrap();
                assert_eq!(part, whole[first * row_bytes..end * row_bytes]);
            }
        }
        assert!(source.read(rows, &mut vec![0; row_bytes]).is_err());
        assert!(source.read(0, &mut vec![0; rows * row_bytes + 1]).is_err());
        whole
    }

    #[test]
    fn concat_puts_rows_one_source_after_another() {
        let concat = Concat::new(vec![counting(2, 2, 0), counting(1, 2, 100), counting(3, 2, 200)]);
        assert_eq!(all(&concat), [0, 1, 2, 3, 100, 101, 200, 201, 202, 203, 204, 205]);
    }

    #[test]
    fn row_cut_keeps_rows_of_every_period() {
        let cut = RowCut::new(counting(8, 2, 0), 4, 1..3);
        assert_eq!(all(&cut), [2, 3, 4, 5, 10, 11, 12, 13]);
        assert_eq!(all(&RowCut::range(counting(8, 2, 0), 6..8)), [12, 13, 14, 15]);
    }

    #[test]
    fn column_cut_keeps_bytes_of_every_row() {
        assert_eq!(all(&ColumnCut::new(counting(3, 4, 0), 1..3)), [1, 2, 5, 6, 9, 10]);
    }

    #[test]
    fn column_cut_stages_in_pieces() {
        let (rows, width) = (10, STAGING_BYTES / 3);
        let cut = ColumnCut::new(counting(rows, width, 0), 7..9);
        let mut out = vec![0; rows * 2];
        cut.read(0, &mut out).unwrap();
        let expected = (0..rows).flat_map(|row| [(row * width + 7) as u8, (row * width + 8) as u8]);
        assert!(out.into_iter().eq(expected));
    }
}
