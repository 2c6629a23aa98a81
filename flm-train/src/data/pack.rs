//! Documents into rows of the context's length.

use crate::data::Document;
use crate::data::batch::Packed;

/// A row and where its documents come from.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Row {
    /// Tokens.
    pub packed: Packed,
    /// File and line of each document.
    pub sources: Vec<(usize, usize)>,
}

/// Rows that are filled at the same time.
const OPEN: usize = 256;

/// Puts documents into rows of at most `context` tokens, each into the open row that it leaves the
/// least room in; without `packing` each has its own.
pub(crate) fn pack(documents: Vec<Document>, context: usize, packing: bool) -> Vec<Row> {
    if !packing {
        return documents.into_iter().map(Row::from).collect();
    }
    let (mut done, mut open): (Vec<Row>, Vec<Row>) = (Vec::new(), Vec::new());
    for document in documents {
        let len = document.ids.len();
        let room = |row: &Row| context.checked_sub(row.packed.len() + len);
        let best = open.iter().enumerate().filter_map(|(i, row)| Some((room(row)?, i))).min();
        match best {
            Some((left, index)) => {
                open[index].packed.push(&document.ids, &document.target);
                open[index].sources.push(document.source);
                if left == 0 {
                    done.push(open.remove(index));
                }
            }
            None => {
                if open.len() == OPEN {
                    done.push(open.remove(0));
                }
                open.push(Row::from(document));
            }
        }
    }
    done.append(&mut open);
    // they stay as long as the run
    done.iter_mut().for_each(|row| row.packed.shrink_to_fit());
    done
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn every_document_is_in_one_row_and_stays_whole(lens in prop::collection::vec(2usize..40, 0..400)) {
            let documents: Vec<Document> = lens.iter().enumerate().map(|(i, &len)| Document {
                ids: (0..len as u32).map(|j| i as u32 * 100 + j).collect(),
                target: vec![true; len],
                source: (0, i),
            }).collect();
            let rows = pack(documents.clone(), 40, true);
            let mut found = vec![0; documents.len()];
            for row in &rows {
                prop_assert!(row.packed.len() <= 40);
                let mut at = 0;
                for &(_, i) in &row.sources {
                    let (ids, len) = (&documents[i].ids, lens[i]);
                    prop_assert_eq!(&row.packed.ids[at..at + len], ids.as_slice());
                    prop_assert!(row.packed.starts[at..at + len].iter().all(|&s| s as usize == at));
                    prop_assert!(row.packed.labels[at..at + len - 1].iter().zip(&ids[1..]).all(|(l, id)| *l == *id as i32));
                    prop_assert_eq!(row.packed.labels[at + len - 1], -100);
                    (at, found[i]) = (at + len, found[i] + 1);
                }
                prop_assert_eq!(at, row.packed.len());
            }
            prop_assert!(found.iter().all(|&n| n == 1));
            // no two rows of the end could have been one
            let short = rows.iter().filter(|row| row.packed.len() <= 20).count();
            prop_assert!(short <= 1, "{} half-empty rows of {}", short, rows.len());
        }
    }
}
