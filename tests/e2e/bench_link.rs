//! `tandem bench --link`.

use serde_json::Value;

use crate::server::tandem;

fn bench(args: &[&str]) -> (Option<i32>, Value, String) {
    let output = tandem(&[&["bench", "--link"], args].concat()).output().expect("running tandem");
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    (output.status.code(), serde_json::from_slice(&output.stdout).unwrap_or_default(), error)
}

#[test]
fn two_processes_exchange() {
    for (transport, link) in [("shm", "shared memory"), ("tcp", "TCP to 127.0.0.1"), ("auto", "shared memory")] {
        let (code, report, error) = bench(&["--transport", transport, "--json"]);
        assert_eq!(code, Some(0), "{error}");
        let measured = &report["measured"][0];
        assert!(measured["link"].as_str().expect("a link").starts_with(link), "{measured}");
        let sizes = measured["sizes"].as_array().expect("sizes");
        assert!(sizes.iter().any(|size| size["values"] == 2880), "{measured}");
        for size in sizes {
            let time = |name: &str| size[name].as_f64().expect("a time");
            assert!(0.0 < time("median_us") && time("median_us") <= time("p99_us"), "{size}");
        }
        // By kernels too, one by one and in a recorded step; or why not.
        let kernels = report["measured"].as_array().map_or(0, Vec::len) - 1;
        let reasons = report["not_measured"].as_array().expect("reasons");
        let why = |reason: &&Value| reason[0].as_str().is_some_and(|what| what.ends_with(", kernels"));
        assert!(kernels == 2 || reasons.iter().filter(why).count() == 1, "{report}");
        let taken = report["taken"].as_str();
        assert_eq!(taken.is_some_and(|taken| taken.starts_with("shm: ")), transport == "auto", "{report}");
    }
}

/// What is named never falls back: no other transport is measured in its place.
#[test]
fn a_named_transport_is_used_or_refused() {
    let (code, report, error) = bench(&["--transport", "rdma", "--json"]);
    match code {
        Some(0) => assert_eq!(report["measured"][0]["transport"], "rdma"),
        _ => assert!(report.is_null() && error.contains("RDMA"), "{error}"),
    }
}

#[test]
fn settings_of_a_model_have_no_place() {
    for setting in [["--threads", "2"], ["--streams", "2"], ["--synthetic", "tiny"]] {
        let (code, _, error) = bench(&setting);
        assert_eq!(code, Some(2));
        assert!(error.contains(setting[0]), "{error}");
    }
}
