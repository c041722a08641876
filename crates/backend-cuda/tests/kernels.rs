//! Every kernel is part of the binary, and compiles for both targets, without spilling registers. Needs NVRTC, but no GPU and no driver.

use tandem_backend_cuda::{CompileError, Compiler, SOURCES};

/// Targets, and whether a Hopper's kernels are built as a GB10's are.
const TARGETS: [(&str, bool); 3] = [("sm_90a", false), ("sm_121a", false), ("sm_90a", true)];

/// `TANDEM_TEST_NVRTC=1` makes a missing compiler a failure: where one is installed nothing may be skipped.
/// `TANDEM_TEST_CUBINS` names a folder in which what was compiled is left, for a look at the instructions.
#[test]
fn compile_for_every_target_without_spills() {
    for (arch, as_gb10) in TARGETS {
        for source in SOURCES {
            let cubin = match Compiler::new(arch, None).as_gb10(as_gb10).compile(source) {
                Ok(cubin) => cubin,
                Err(error @ CompileError::NoCompiler) => {
                    assert!(std::env::var_os("TANDEM_TEST_NVRTC").is_none(), "{error}");
                    eprintln!("SKIPPED compiling the kernels: {error}");
                    return;
                }
                Err(error) => panic!("{error}"),
            };
            let what = format!("{} for {arch}{}", source.name, if as_gb10 { " as a GB10's" } else { "" });
            if let Some(folder) = std::env::var_os("TANDEM_TEST_CUBINS").filter(|_| !as_gb10) {
                let name = format!("{}.{arch}.cubin", source.name.trim_end_matches(".cu"));
                std::fs::write(std::path::Path::new(&folder).join(name), &cubin.image).unwrap();
            }
            assert!(cubin.log.contains("registers"), "{what}: the assembler reported nothing:\n{}", cubin.log);
            let spills =
                |line: &&str| line.contains("spill") && !line.contains("0 bytes spill stores, 0 bytes spill loads");
            let spilling: Vec<&str> = cubin.log.lines().filter(spills).collect();
            // What stands for an instruction that a Hopper lacks may spill: it is for checks.
            assert!(spilling.is_empty() || as_gb10, "{what} spills registers: {spilling:?}\n{}", cubin.log);
            // Some bulk copies are compiled to a call that reserves gigabytes at the first launch.
            let syscall = b"__cuda_syscall";
            let calls = cubin.image.windows(syscall.len()).any(|window| window == syscall);
            assert!(!calls, "{what} calls into the driver's device runtime");
        }
    }
}
