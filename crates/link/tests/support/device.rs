//! RDMA devices, where there are any.

use std::env;

use tandem_link::{Endpoint, RdmaChoice};

use super::{Make, settings};

/// Endpoints on the devices that the machine has.
pub const RDMA: Make = |settings| Endpoint::rdma(settings, &RdmaChoice::default());

/// Runs the body if there is a device. If not, says so, unless `TANDEM_TEST_RDMA` demands one.
pub fn with_device(body: impl FnOnce()) {
    match RDMA(&settings(4096)) {
        Ok(_) => body(),
        Err(error) => {
            assert!(env::var_os("TANDEM_TEST_RDMA").is_none(), "{error}");
            eprintln!("skipped: {error}");
        }
    }
}
