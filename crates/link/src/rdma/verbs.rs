//! The part of libibverbs that is used here, opened when it is first wanted: a machine without it loses RDMA and nothing else.
//!
//! Layouts are those of rdma-core's `verbs.h` on 64-bit Linux, whose ABI (`IBVERBS_1.1`) has been the same since 2008. Offsets
//! are asserted at compile time, and compared with the header itself where that is installed, as in the RDMA job.

use std::ffi::{CStr, c_char, c_int, c_void};
use std::sync::OnceLock;

use libloading::Library;

/// `struct ibv_device`, of which nothing is looked at.
#[repr(C)]
pub(super) struct Device {
    _private: [u8; 0],
}

/// `struct ibv_pd`, of which nothing is looked at.
#[repr(C)]
pub(super) struct ProtectionDomain {
    _private: [u8; 0],
}

/// The head of `struct ibv_context`.
#[repr(C)]
pub(super) struct Context {
    device: *mut Device,
    operations: Operations,
}

/// `struct ibv_context_ops`: what verbs.h calls from inline functions.
#[repr(C)]
struct Operations {
    _before: [*mut c_void; 11],
    poll_cq: unsafe extern "C" fn(*mut CompletionQueue, c_int, *mut Completion) -> c_int,
    _between: [*mut c_void; 13],
    post_send: unsafe extern "C" fn(*mut QueuePair, *mut SendRequest, *mut *mut SendRequest) -> c_int,
}

/// The head of `struct ibv_cq`.
#[repr(C)]
pub(super) struct CompletionQueue {
    context: *mut Context,
}

/// The head of `struct ibv_mr`.
#[repr(C)]
pub(super) struct MemoryRegion {
    context: *mut Context,
    domain: *mut ProtectionDomain,
    address: *mut c_void,
    length: usize,
    handle: u32,
    pub(super) local_key: u32,
    pub(super) remote_key: u32,
}

/// The head of `struct ibv_qp`.
#[repr(C)]
pub(super) struct QueuePair {
    context: *mut Context,
    _between: [*mut c_void; 5],
    handle: u32,
    pub(super) number: u32,
}

/// `struct ibv_qp_cap`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Capacity {
    pub(super) send_requests: u32,
    pub(super) receive_requests: u32,
    pub(super) send_pieces: u32,
    pub(super) receive_pieces: u32,
    pub(super) inline_bytes: u32,
}

/// `struct ibv_qp_init_attr`.
#[repr(C)]
pub(super) struct QueuePairInit {
    pub(super) user: *mut c_void,
    pub(super) send_queue: *mut CompletionQueue,
    pub(super) receive_queue: *mut CompletionQueue,
    pub(super) shared_receive_queue: *mut c_void,
    pub(super) capacity: Capacity,
    pub(super) kind: u32,
    pub(super) signal_all: c_int,
}

/// `struct ibv_ah_attr`, with the `ibv_global_route` it begins with.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Address {
    /// 16 bytes in network order.
    pub(super) gid: [u64; 2],
    pub(super) flow_label: u32,
    pub(super) own_gid_index: u8,
    pub(super) hop_limit: u8,
    pub(super) traffic_class: u8,
    pub(super) lid: u16,
    pub(super) service_level: u8,
    pub(super) path_bits: u8,
    pub(super) rate: u8,
    pub(super) is_global: u8,
    pub(super) port: u8,
}

/// `struct ibv_qp_attr`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct QueuePairAttributes {
    pub(super) state: u32,
    pub(super) current_state: u32,
    pub(super) path_mtu: u32,
    pub(super) migration_state: u32,
    pub(super) q_key: u32,
    pub(super) receive_number: u32,
    pub(super) send_number: u32,
    pub(super) peer: u32,
    pub(super) access: u32,
    pub(super) capacity: Capacity,
    pub(super) address: Address,
    pub(super) alternate_address: Address,
    pub(super) partition_index: u16,
    pub(super) alternate_partition_index: u16,
    pub(super) notify_drained: u8,
    pub(super) draining: u8,
    pub(super) reads_out: u8,
    pub(super) reads_in: u8,
    pub(super) not_ready_timer: u8,
    pub(super) port: u8,
    pub(super) timeout: u8,
    pub(super) retries: u8,
    pub(super) not_ready_retries: u8,
    pub(super) alternate_port: u8,
    pub(super) alternate_timeout: u8,
    pub(super) rate_limit: u32,
}

/// `struct ibv_sge`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Piece {
    pub(super) address: u64,
    pub(super) length: u32,
    pub(super) key: u32,
}

/// `struct ibv_send_wr`.
#[repr(C)]
pub(super) struct SendRequest {
    pub(super) id: u64,
    pub(super) next: *mut SendRequest,
    pub(super) pieces: *mut Piece,
    pub(super) piece_count: c_int,
    pub(super) operation: u32,
    pub(super) flags: u32,
    pub(super) immediate: u32,
    pub(super) remote_address: u64,
    pub(super) remote_key: u32,
    pub(super) rest: [u64; 9],
}

/// `struct ibv_wc`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Completion {
    pub(super) id: u64,
    pub(super) status: u32,
    pub(super) operation: u32,
    pub(super) vendor_error: u32,
    pub(super) bytes: u32,
    pub(super) immediate: u32,
    pub(super) queue_pair: u32,
    pub(super) source: u32,
    pub(super) flags: u32,
    pub(super) partition_index: u16,
    pub(super) lid: u16,
    pub(super) service_level: u8,
    pub(super) path_bits: u8,
}

/// What the exported `ibv_query_port` writes begins with these. Its whole is shorter than `room`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct PortAttributes {
    pub(super) state: u32,
    pub(super) mtu_max: u32,
    pub(super) mtu: u32,
    room: [u32; 29],
}

/// `IBV_QPT_RC`.
pub(super) const RELIABLE_CONNECTION: u32 = 2;
/// `IBV_ACCESS_LOCAL_WRITE | IBV_ACCESS_REMOTE_WRITE`. Relaxed ordering is not asked for: payloads must land before flags.
pub(super) const ACCESS: u32 = 1 | 2;
/// `IBV_WR_RDMA_WRITE`.
pub(super) const RDMA_WRITE: u32 = 0;
/// `IBV_SEND_SIGNALED` and `IBV_SEND_INLINE`.
pub(super) const SIGNALED: u32 = 2;
pub(super) const INLINE: u32 = 8;
/// `IBV_PORT_ACTIVE`.
pub(super) const PORT_ACTIVE: u32 = 4;

/// `enum ibv_qp_state`.
pub(super) mod state {
    pub(in super::super) const INIT: u32 = 1;
    pub(in super::super) const READY_TO_RECEIVE: u32 = 2;
    pub(in super::super) const READY_TO_SEND: u32 = 3;
}

/// `enum ibv_qp_attr_mask`: which attributes are given.
pub(super) mod given {
    const STATE: c_int = 1 << 0;
    const ACCESS: c_int = 1 << 3;
    const PARTITION: c_int = 1 << 4;
    const PORT: c_int = 1 << 5;
    const ADDRESS: c_int = 1 << 7;
    const PATH_MTU: c_int = 1 << 8;
    const TIMEOUT: c_int = 1 << 9;
    const RETRIES: c_int = 1 << 10;
    const NOT_READY_RETRIES: c_int = 1 << 11;
    const RECEIVE_NUMBER: c_int = 1 << 12;
    const READS_OUT: c_int = 1 << 13;
    const NOT_READY_TIMER: c_int = 1 << 15;
    const SEND_NUMBER: c_int = 1 << 16;
    const READS_IN: c_int = 1 << 17;
    const PEER: c_int = 1 << 20;

    use std::ffi::c_int;

    pub(in super::super) const INIT: c_int = STATE | PARTITION | PORT | ACCESS;
    pub(in super::super) const READY_TO_RECEIVE: c_int =
        STATE | ADDRESS | PATH_MTU | PEER | RECEIVE_NUMBER | READS_IN | NOT_READY_TIMER;
    pub(in super::super) const READY_TO_SEND: c_int =
        STATE | TIMEOUT | RETRIES | NOT_READY_RETRIES | SEND_NUMBER | READS_OUT;
}

macro_rules! verbs {
    ($($name:ident: fn($($argument:ty),*) -> $result:ty = $symbol:literal;)*) => {
        /// The library's functions.
        pub(super) struct Verbs {
            $(pub(super) $name: unsafe extern "C" fn($($argument),*) -> $result,)*
        }

        impl Verbs {
            fn open() -> Result<Self, String> {
                // SAFETY: libibverbs may be loaded at any time. It is never unloaded: its providers start threads.
                let library = unsafe { Library::new("libibverbs.so.1") }.map_err(|error| error.to_string())?;
                let library = Box::leak(Box::new(library));
                Ok(Self {
                    // SAFETY: the symbols have these types in verbs.h.
                    $($name: *unsafe { library.get($symbol) }.map_err(|error| error.to_string())?,)*
                })
            }
        }
    };
}

verbs! {
    device_list: fn(*mut c_int) -> *mut *mut Device = b"ibv_get_device_list\0";
    free_device_list: fn(*mut *mut Device) -> () = b"ibv_free_device_list\0";
    device_name: fn(*mut Device) -> *const c_char = b"ibv_get_device_name\0";
    open_device: fn(*mut Device) -> *mut Context = b"ibv_open_device\0";
    close_device: fn(*mut Context) -> c_int = b"ibv_close_device\0";
    query_port: fn(*mut Context, u8, *mut PortAttributes) -> c_int = b"ibv_query_port\0";
    allocate_domain: fn(*mut Context) -> *mut ProtectionDomain = b"ibv_alloc_pd\0";
    free_domain: fn(*mut ProtectionDomain) -> c_int = b"ibv_dealloc_pd\0";
    register: fn(*mut ProtectionDomain, *mut c_void, usize, c_int) -> *mut MemoryRegion = b"ibv_reg_mr\0";
    deregister: fn(*mut MemoryRegion) -> c_int = b"ibv_dereg_mr\0";
    create_completion_queue: fn(*mut Context, c_int, *mut c_void, *mut c_void, c_int) -> *mut CompletionQueue = b"ibv_create_cq\0";
    destroy_completion_queue: fn(*mut CompletionQueue) -> c_int = b"ibv_destroy_cq\0";
    create_queue_pair: fn(*mut ProtectionDomain, *mut QueuePairInit) -> *mut QueuePair = b"ibv_create_qp\0";
    modify_queue_pair: fn(*mut QueuePair, *mut QueuePairAttributes, c_int) -> c_int = b"ibv_modify_qp\0";
    destroy_queue_pair: fn(*mut QueuePair) -> c_int = b"ibv_destroy_qp\0";
    status_name: fn(u32) -> *const c_char = b"ibv_wc_status_str\0";
}

impl Verbs {
    /// The library, or why there is none.
    pub(super) fn get() -> Result<&'static Self, String> {
        static VERBS: OnceLock<Result<Verbs, String>> = OnceLock::new();
        VERBS.get_or_init(Self::open).as_ref().map_err(Clone::clone)
    }

    /// What a completion's status means.
    pub(super) fn status(&self, status: u32) -> String {
        // SAFETY: gives a constant string for any number.
        let name = unsafe { (self.status_name)(status) };
        if name.is_null() {
            return format!("status {status}");
        }
        // SAFETY: as above.
        unsafe { CStr::from_ptr(name) }.to_string_lossy().into_owned()
    }
}

/// `ibv_poll_cq`: how many completions there were.
///
/// # Safety
///
/// The queue is alive.
pub(super) unsafe fn poll(queue: *mut CompletionQueue, completions: &mut [Completion]) -> c_int {
    let (count, start) = (completions.len() as c_int, completions.as_mut_ptr());
    // SAFETY: the context lives longer than its queue, and there is room for as many as said.
    unsafe { ((*(*queue).context).operations.poll_cq)(queue, count, start) }
}

/// `ibv_post_send`: 0, or what went wrong.
///
/// # Safety
///
/// The queue pair is alive, and what the requests point to is valid: inline data until this returns, other until completion.
pub(super) unsafe fn post(pair: *mut QueuePair, requests: *mut SendRequest) -> c_int {
    let mut bad = std::ptr::null_mut();
    // SAFETY: the context lives longer than its queue pair.
    unsafe { ((*(*pair).context).operations.post_send)(pair, requests, &raw mut bad) }
}

/// Each line: what Rust says, the number, what C says. Rust is asked at compile time, C in the test below.
macro_rules! layouts {
    ($($rust:expr, $number:literal, $c:literal;)*) => {
        const _: () = { $(assert!($rust == $number);)* };
        #[cfg(test)]
        const HEADER: &[(&str, u64)] = &[$(($c, $number)),*];
    };
}

use std::mem::{offset_of, size_of};

layouts! {
    offset_of!(Context, operations.poll_cq), 96, "offsetof(struct ibv_context, ops.poll_cq)";
    offset_of!(Context, operations.post_send), 208, "offsetof(struct ibv_context, ops.post_send)";
    offset_of!(CompletionQueue, context), 0, "offsetof(struct ibv_cq, context)";
    offset_of!(MemoryRegion, local_key), 36, "offsetof(struct ibv_mr, lkey)";
    offset_of!(MemoryRegion, remote_key), 40, "offsetof(struct ibv_mr, rkey)";
    offset_of!(QueuePair, context), 0, "offsetof(struct ibv_qp, context)";
    offset_of!(QueuePair, number), 52, "offsetof(struct ibv_qp, qp_num)";
    size_of::<Capacity>(), 20, "sizeof(struct ibv_qp_cap)";
    offset_of!(Capacity, receive_requests), 4, "offsetof(struct ibv_qp_cap, max_recv_wr)";
    offset_of!(Capacity, send_pieces), 8, "offsetof(struct ibv_qp_cap, max_send_sge)";
    offset_of!(Capacity, inline_bytes), 16, "offsetof(struct ibv_qp_cap, max_inline_data)";
    size_of::<QueuePairInit>(), 64, "sizeof(struct ibv_qp_init_attr)";
    offset_of!(QueuePairInit, send_queue), 8, "offsetof(struct ibv_qp_init_attr, send_cq)";
    offset_of!(QueuePairInit, receive_queue), 16, "offsetof(struct ibv_qp_init_attr, recv_cq)";
    offset_of!(QueuePairInit, capacity), 32, "offsetof(struct ibv_qp_init_attr, cap)";
    offset_of!(QueuePairInit, kind), 52, "offsetof(struct ibv_qp_init_attr, qp_type)";
    offset_of!(QueuePairInit, signal_all), 56, "offsetof(struct ibv_qp_init_attr, sq_sig_all)";
    size_of::<Address>(), 32, "sizeof(struct ibv_ah_attr)";
    offset_of!(Address, gid), 0, "offsetof(struct ibv_ah_attr, grh.dgid)";
    offset_of!(Address, own_gid_index), 20, "offsetof(struct ibv_ah_attr, grh.sgid_index)";
    offset_of!(Address, hop_limit), 21, "offsetof(struct ibv_ah_attr, grh.hop_limit)";
    offset_of!(Address, is_global), 29, "offsetof(struct ibv_ah_attr, is_global)";
    offset_of!(Address, port), 30, "offsetof(struct ibv_ah_attr, port_num)";
    size_of::<QueuePairAttributes>(), 144, "sizeof(struct ibv_qp_attr)";
    offset_of!(QueuePairAttributes, state), 0, "offsetof(struct ibv_qp_attr, qp_state)";
    offset_of!(QueuePairAttributes, path_mtu), 8, "offsetof(struct ibv_qp_attr, path_mtu)";
    offset_of!(QueuePairAttributes, receive_number), 20, "offsetof(struct ibv_qp_attr, rq_psn)";
    offset_of!(QueuePairAttributes, send_number), 24, "offsetof(struct ibv_qp_attr, sq_psn)";
    offset_of!(QueuePairAttributes, peer), 28, "offsetof(struct ibv_qp_attr, dest_qp_num)";
    offset_of!(QueuePairAttributes, access), 32, "offsetof(struct ibv_qp_attr, qp_access_flags)";
    offset_of!(QueuePairAttributes, address), 56, "offsetof(struct ibv_qp_attr, ah_attr)";
    offset_of!(QueuePairAttributes, partition_index), 120, "offsetof(struct ibv_qp_attr, pkey_index)";
    offset_of!(QueuePairAttributes, reads_out), 126, "offsetof(struct ibv_qp_attr, max_rd_atomic)";
    offset_of!(QueuePairAttributes, reads_in), 127, "offsetof(struct ibv_qp_attr, max_dest_rd_atomic)";
    offset_of!(QueuePairAttributes, not_ready_timer), 128, "offsetof(struct ibv_qp_attr, min_rnr_timer)";
    offset_of!(QueuePairAttributes, port), 129, "offsetof(struct ibv_qp_attr, port_num)";
    offset_of!(QueuePairAttributes, timeout), 130, "offsetof(struct ibv_qp_attr, timeout)";
    offset_of!(QueuePairAttributes, retries), 131, "offsetof(struct ibv_qp_attr, retry_cnt)";
    offset_of!(QueuePairAttributes, not_ready_retries), 132, "offsetof(struct ibv_qp_attr, rnr_retry)";
    size_of::<Piece>(), 16, "sizeof(struct ibv_sge)";
    offset_of!(Piece, length), 8, "offsetof(struct ibv_sge, length)";
    offset_of!(Piece, key), 12, "offsetof(struct ibv_sge, lkey)";
    size_of::<SendRequest>(), 128, "sizeof(struct ibv_send_wr)";
    offset_of!(SendRequest, next), 8, "offsetof(struct ibv_send_wr, next)";
    offset_of!(SendRequest, pieces), 16, "offsetof(struct ibv_send_wr, sg_list)";
    offset_of!(SendRequest, piece_count), 24, "offsetof(struct ibv_send_wr, num_sge)";
    offset_of!(SendRequest, operation), 28, "offsetof(struct ibv_send_wr, opcode)";
    offset_of!(SendRequest, flags), 32, "offsetof(struct ibv_send_wr, send_flags)";
    offset_of!(SendRequest, remote_address), 40, "offsetof(struct ibv_send_wr, wr.rdma.remote_addr)";
    offset_of!(SendRequest, remote_key), 48, "offsetof(struct ibv_send_wr, wr.rdma.rkey)";
    size_of::<Completion>(), 48, "sizeof(struct ibv_wc)";
    offset_of!(Completion, id), 0, "offsetof(struct ibv_wc, wr_id)";
    offset_of!(Completion, status), 8, "offsetof(struct ibv_wc, status)";
    offset_of!(PortAttributes, state), 0, "offsetof(struct ibv_port_attr, state)";
    offset_of!(PortAttributes, mtu), 8, "offsetof(struct ibv_port_attr, active_mtu)";
    RELIABLE_CONNECTION, 2, "IBV_QPT_RC";
    ACCESS, 3, "(IBV_ACCESS_LOCAL_WRITE | IBV_ACCESS_REMOTE_WRITE)";
    RDMA_WRITE, 0, "IBV_WR_RDMA_WRITE";
    SIGNALED, 2, "IBV_SEND_SIGNALED";
    INLINE, 8, "IBV_SEND_INLINE";
    PORT_ACTIVE, 4, "IBV_PORT_ACTIVE";
    state::INIT, 1, "IBV_QPS_INIT";
    state::READY_TO_RECEIVE, 2, "IBV_QPS_RTR";
    state::READY_TO_SEND, 3, "IBV_QPS_RTS";
    given::INIT, 0x39, "(IBV_QP_STATE | IBV_QP_PKEY_INDEX | IBV_QP_PORT | IBV_QP_ACCESS_FLAGS)";
    given::READY_TO_RECEIVE, 0x12_9181, "(IBV_QP_STATE | IBV_QP_AV | IBV_QP_PATH_MTU | IBV_QP_DEST_QPN | IBV_QP_RQ_PSN | IBV_QP_MAX_DEST_RD_ATOMIC | IBV_QP_MIN_RNR_TIMER)";
    given::READY_TO_SEND, 0x1_2E01, "(IBV_QP_STATE | IBV_QP_TIMEOUT | IBV_QP_RETRY_CNT | IBV_QP_RNR_RETRY | IBV_QP_SQ_PSN | IBV_QP_MAX_QP_RD_ATOMIC)";
}

const _: () = assert!(size_of::<PortAttributes>() == 128);

#[cfg(test)]
mod tests {
    use std::env;
    use std::fmt::Write;
    use std::fs;
    use std::process::Command;

    use super::HEADER;

    /// A C compiler reads the header that is installed. Without one there is nothing to compare with, unless one is demanded.
    #[test]
    fn layouts_are_those_of_the_header() {
        let mut program = String::from("#include <stddef.h>\n#include <infiniband/verbs.h>\n");
        for (expression, number) in HEADER {
            writeln!(program, "_Static_assert({expression} == {number}, \"{expression}\");").expect("a string");
        }
        program += "_Static_assert(sizeof(struct ibv_port_attr) <= 128, \"room\");\n";
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("layouts.c");
        fs::write(&path, program).expect("a file");
        let checked = Command::new("cc").args(["-fsyntax-only", "-x", "c"]).arg(&path).output();
        let complaint = match &checked {
            Ok(output) if output.status.success() => return,
            Ok(output) => String::from_utf8_lossy(&output.stderr).into_owned(),
            Err(error) => error.to_string(),
        };
        let no_header = checked.is_err() || complaint.contains("infiniband/verbs.h: No such file");
        assert!(no_header && env::var_os("TANDEM_TEST_VERBS_HEADER").is_none(), "{complaint}");
        eprintln!("skipped: no C compiler or no libibverbs-dev to compare with");
    }
}
