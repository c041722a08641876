//! `tandem bench --interrupt`.

use serde_json::Value;

use crate::server::tandem;

fn bench(slice: &str) -> Value {
    let args = ["bench", "--synthetic", "tiny", "--device", "cpu", "--interrupt", "700", "--prompt-tokens", "20"];
    let runs = ["--runs", "1", "--warm-up", "0", "--json", "--prefill-slice", slice];
    let output = tandem(&[&args[..], &runs].concat()).output().expect("running tandem");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).expect("a report")
}

/// Two chunks, of 512 tokens and the rest: a gap for each of them at least.
#[test]
fn gaps_of_an_answer_are_measured_while_a_prompt_comes_in() {
    for (slice, seconds) in [("1ms", 0.001), ("0", 0.0)] {
        let report = bench(slice);
        let number =
            |of: &str, name: &str| report[of][name].as_f64().unwrap_or_else(|| panic!("{of}.{name}: {report}"));
        assert_eq!((&report["answers"], &report["interrupting_prompt_tokens"]), (&1.into(), &700.into()));
        assert!(number("alone_s", "count") >= 64.0 && number("first_token_s", "median") > 0.0, "{report}");
        assert!(number("beside_s", "count") >= 2.0, "{report}");
        assert_eq!(report["prefill_slice_s"].as_f64(), Some(seconds));
        for gaps in ["alone_s", "beside_s"] {
            assert!(0.0 < number(gaps, "median") && number(gaps, "median") <= number(gaps, "max"), "{report}");
            assert!(number(gaps, "p99") <= number(gaps, "max"), "{report}");
        }
    }
}
