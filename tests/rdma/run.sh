# run PROGRAM TEST: a test of this name there has to be.
run() {
    "./$1" --exact "$2" --nocapture | tee /tmp/output
    grep -q "^test result: ok. 1 passed" /tmp/output
}
