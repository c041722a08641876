use std::collections::BTreeSet;

use super::*;

/// What a device would give that gets each product from `read`.
fn given(cases: &[Case], read: impl Fn(&Case, usize, usize, usize) -> f32) -> Vec<f32> {
    let products = |case: &Case| -> Vec<f32> {
        (0..PRODUCTS).map(|i| read(case, i / (ROWS * TOKENS), i / TOKENS % ROWS, i % TOKENS)).collect()
    };
    cases.iter().flat_map(products).collect()
}

#[test]
fn what_should_come_passes() {
    let cases = cases();
    assert_eq!(fault(&cases, &given(&cases, Case::product)), None);
    assert!(cases.iter().flat_map(|case| given(std::slice::from_ref(case), Case::product)).all(f32::is_finite));
}

/// A device that reads the case `misread` makes of each.
fn misreading(misread: impl Fn(&mut Case)) -> Option<Fault> {
    let right = cases();
    let mut wrong = right.clone();
    wrong.iter_mut().for_each(misread);
    fault(&right, &given(&wrong, Case::product))
}

#[test]
fn scales_from_other_lanes_and_bytes_are_noticed() {
    let faults = [
        misreading(|case| case.scales.rotate_left(8)),
        misreading(|case| case.scales.rotate_left(1)),
        misreading(|case| (0..8).for_each(|row| case.scales.swap(2 * row, 2 * row + 1))),
        misreading(|case| (8..16).for_each(|row| case.scales[row] = case.scales[row - 8])),
        misreading(|case| case.scales.iter_mut().for_each(|bytes| bytes.swap(0, 1))),
        misreading(|case| case.scales.iter_mut().for_each(|bytes| bytes[3] = bytes[2])),
        misreading(|case| case.x_scales.rotate_left(1)),
        misreading(|case| case.x_scales.rotate_left(4)),
        misreading(|case| case.x_scales.iter_mut().for_each(|bytes| bytes.reverse())),
        misreading(|case| case.x_scales.iter_mut().for_each(|bytes| bytes[1] = bytes[0])),
        misreading(|case| case.scales.iter_mut().flatten().for_each(|byte| *byte = (*byte).max(1))),
        misreading(|case| case.x_scales.iter_mut().flatten().for_each(|byte| *byte = (*byte).min(253))),
    ];
    for (index, fault) in faults.into_iter().enumerate() {
        assert!(fault.is_some(), "misreading {index} of scales passed");
    }
}

#[test]
fn elements_from_other_places_are_noticed() {
    let swap = |bytes: &mut [u8; COLS], distance: usize| {
        (0..COLS).filter(|k| k & distance == 0).for_each(|k| bytes.swap(k, k + distance));
    };
    for distance in [1, 2, 4, 8, 16, 32] {
        let weights = misreading(|case| case.codes.iter_mut().for_each(|row| swap(row, distance)));
        let activations = misreading(|case| case.x.iter_mut().for_each(|row| swap(row, distance)));
        assert!(weights.is_some() && activations.is_some(), "columns {distance} apart were swapped unnoticed");
    }
    assert!(misreading(|case| case.codes.swap(3, 11)).is_some());
    assert!(misreading(|case| case.x.swap(0, 7)).is_some());
}

/// E2M1 in other bits of its container is another value: the sign lost, or the magnitude shifted.
#[test]
fn another_place_in_the_container_is_noticed() {
    let codes = |change: fn(u8) -> u8| misreading(|case| case.codes.iter_mut().flatten().for_each(|c| *c = change(*c)));
    assert!(codes(|code| code & 7).is_some());
    assert!(codes(|code| code << 1 & 15).is_some());
    assert!(codes(|code| code >> 1).is_some());
}

#[test]
fn not_adding_to_what_was_there_and_not_a_number_are_noticed() {
    let cases = cases();
    assert!(fault(&cases, &given(&cases, |case, group, row, token| case.product(group, row, token) / 2.0)).is_some());
    let mut got = given(&cases, Case::product);
    *got.last_mut().unwrap() = f32::NAN;
    let fault = fault(&cases, &got).unwrap();
    assert_eq!((fault.sweep, fault.group, fault.row, fault.token), ("all elements", 3, 15, 7));
    let want = fault.want;
    let text = format!("all elements: row 15 by activation row 7 over columns 96..128 gives NaN instead of {want:e}");
    assert_eq!(fault.to_string(), text);
}

/// The sweeps are whole: every element, code and scale byte.
#[test]
fn nothing_is_left_out() {
    let of = |sweep: &'static str| cases().into_iter().filter(move |case| case.sweep == sweep);
    let (mut weights, mut activations) = (BTreeSet::new(), BTreeSet::new());
    for case in of("one-hot weights") {
        for (row, codes) in case.codes.iter().enumerate() {
            weights.extend((0..COLS).filter(|k| codes[*k] != 0).map(|k| (row, k % GROUP)));
        }
    }
    for case in of("one-hot activations") {
        for (token, x) in case.x.iter().enumerate() {
            activations.extend((0..COLS).filter(|k| x[*k] != 0).map(|k| (token, k % GROUP)));
        }
    }
    assert_eq!((weights.len(), activations.len()), (ROWS * GROUP, TOKENS * GROUP));
    let codes: BTreeSet<u8> = of("one-hot activations").flat_map(|case| case.codes.concat()).collect();
    assert_eq!(codes, (0..16).collect());
    let (of_weights, of_activations): (BTreeSet<u8>, BTreeSet<u8>) = (
        of("every scale").flat_map(|case| case.scales()).collect(),
        of("every scale").flat_map(|case| case.activation_scales()).collect(),
    );
    assert_eq!((of_weights, of_activations), ((0..=SCALE_MAX).collect(), (0..=SCALE_MAX).collect()));
}
