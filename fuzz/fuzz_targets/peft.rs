#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    cllm_fuzz_targets::run("peft", data);
});
