#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| macvtap_fuzz::netlink(data));
