//! What libibverbs and this process share in memory: its structures, laid out as C does, and the functions that are loaded.
//!
//! Declared here and not generated, so that a build needs neither rdma-core's headers nor a C parser. Names are C's without
//! `ibv_`. The tests compare sizes and offsets with the header of this machine. Only [`super::library`] and the safe types
//! beside it use this file.
#![allow(missing_docs)] // the names are rdma-core's, and so are their man pages

use std::mem::MaybeUninit;

use libc::{c_char, c_int, c_uint, c_void, pthread_cond_t, pthread_mutex_t};

pub(super) const QPT_RC: c_uint = 2;

pub(super) const QPS_INIT: c_uint = 1;
pub(super) const QPS_RTR: c_uint = 2;
pub(super) const QPS_RTS: c_uint = 3;
pub(super) const QPS_ERR: c_uint = 6;

pub(super) const ATTR_STATE: c_int = 1 << 0;
pub(super) const ATTR_ACCESS_FLAGS: c_int = 1 << 3;
pub(super) const ATTR_PKEY_INDEX: c_int = 1 << 4;
pub(super) const ATTR_PORT: c_int = 1 << 5;
pub(super) const ATTR_AV: c_int = 1 << 7;
pub(super) const ATTR_PATH_MTU: c_int = 1 << 8;
pub(super) const ATTR_TIMEOUT: c_int = 1 << 9;
pub(super) const ATTR_RETRY_CNT: c_int = 1 << 10;
pub(super) const ATTR_RNR_RETRY: c_int = 1 << 11;
pub(super) const ATTR_RQ_PSN: c_int = 1 << 12;
pub(super) const ATTR_MAX_QP_RD_ATOMIC: c_int = 1 << 13;
pub(super) const ATTR_MIN_RNR_TIMER: c_int = 1 << 15;
pub(super) const ATTR_SQ_PSN: c_int = 1 << 16;
pub(super) const ATTR_MAX_DEST_RD_ATOMIC: c_int = 1 << 17;
pub(super) const ATTR_DEST_QPN: c_int = 1 << 20;

pub(super) const ACCESS_LOCAL_WRITE: c_int = 1;
pub(super) const ACCESS_REMOTE_WRITE: c_int = 1 << 1;

pub(super) const WR_RDMA_WRITE: c_uint = 0;
pub(super) const WR_RDMA_WRITE_WITH_IMM: c_uint = 1;
pub(super) const SEND_SIGNALED: c_uint = 1 << 1;
pub(super) const SEND_INLINE: c_uint = 1 << 3;

pub(super) const WC_SUCCESS: c_uint = 0;
pub(super) const WC_RECV_RDMA_WITH_IMM: c_uint = (1 << 7) + 1;

/// InfiniBand and RoCE; iWARP and others have no write with immediate.
pub(super) const TRANSPORT_IB: c_int = 0;

pub(super) const PORT_ACTIVE: c_uint = 4;
pub(super) const LINK_LAYER_ETHERNET: u8 = 2;

pub(super) const GID_TYPE_ROCE_V1: u32 = 1;
pub(super) const GID_TYPE_ROCE_V2: u32 = 2;

pub(super) const EVENT_CQ_ERR: c_uint = 0;
pub(super) const EVENT_DEVICE_FATAL: c_uint = 8;
pub(super) const EVENT_PORT_ACTIVE: c_uint = 9;
pub(super) const EVENT_PORT_ERR: c_uint = 10;

/// The beginning of it: the library owns them.
#[repr(C)]
pub(super) struct Device {
    pub(super) ops: [*mut c_void; 2],
    pub(super) node_type: c_int,
    pub(super) transport_type: c_int,
}

#[repr(C)]
pub(super) struct Context {
    pub(super) device: *mut Device,
    pub(super) ops: ContextOps,
    pub(super) cmd_fd: c_int,
    pub(super) async_fd: c_int,
    pub(super) num_comp_vectors: c_int,
    pub(super) mutex: pthread_mutex_t,
    pub(super) abi_compat: *mut c_void,
}

/// The provider's own functions: the header's inline functions call these, and so do we.
#[repr(C)]
pub(super) struct ContextOps {
    pub(super) before_poll: [*mut c_void; 11],
    pub(super) poll_cq: unsafe extern "C" fn(*mut CompletionQueue, c_int, *mut Completion) -> c_int,
    pub(super) req_notify_cq: unsafe extern "C" fn(*mut CompletionQueue, c_int) -> c_int,
    pub(super) before_post: [*mut c_void; 12],
    pub(super) post_send:
        unsafe extern "C" fn(*mut QueuePair, *mut SendRequest, *mut *mut SendRequest) -> c_int,
    pub(super) post_recv: unsafe extern "C" fn(
        *mut QueuePair,
        *mut ReceiveRequest,
        *mut *mut ReceiveRequest,
    ) -> c_int,
    pub(super) after_post: [*mut c_void; 5],
}

#[repr(C)]
pub(super) struct ProtectionDomain {
    pub(super) context: *mut Context,
    pub(super) handle: u32,
}

#[repr(C)]
pub(super) struct MemoryRegion {
    pub(super) context: *mut Context,
    pub(super) pd: *mut ProtectionDomain,
    pub(super) addr: *mut c_void,
    pub(super) length: usize,
    pub(super) handle: u32,
    pub(super) lkey: u32,
    pub(super) rkey: u32,
}

#[repr(C)]
pub(super) struct CompletionChannel {
    pub(super) context: *mut Context,
    pub(super) fd: c_int,
    pub(super) refcnt: c_int,
}

#[repr(C)]
pub(super) struct CompletionQueue {
    pub(super) context: *mut Context,
    pub(super) channel: *mut CompletionChannel,
    pub(super) cq_context: *mut c_void,
    pub(super) handle: u32,
    pub(super) cqe: c_int,
    pub(super) mutex: pthread_mutex_t,
    pub(super) cond: pthread_cond_t,
    pub(super) comp_events_completed: u32,
    pub(super) async_events_completed: u32,
}

#[repr(C)]
pub(super) struct QueuePair {
    pub(super) context: *mut Context,
    pub(super) qp_context: *mut c_void,
    pub(super) pd: *mut ProtectionDomain,
    pub(super) send_cq: *mut CompletionQueue,
    pub(super) recv_cq: *mut CompletionQueue,
    pub(super) srq: *mut c_void,
    pub(super) handle: u32,
    pub(super) qp_num: u32,
    pub(super) state: c_uint,
    pub(super) qp_type: c_uint,
    pub(super) mutex: pthread_mutex_t,
    pub(super) cond: pthread_cond_t,
    pub(super) events_completed: u32,
}

#[repr(C)]
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Capacity {
    pub(super) max_send_wr: u32,
    pub(super) max_recv_wr: u32,
    pub(super) max_send_sge: u32,
    pub(super) max_recv_sge: u32,
    pub(super) max_inline_data: u32,
}

#[repr(C)]
pub(super) struct QueuePairInit {
    pub(super) qp_context: *mut c_void,
    pub(super) send_cq: *mut CompletionQueue,
    pub(super) recv_cq: *mut CompletionQueue,
    pub(super) srq: *mut c_void,
    pub(super) cap: Capacity,
    pub(super) qp_type: c_uint,
    pub(super) sq_sig_all: c_int,
}

#[repr(C)]
#[derive(Clone, Copy, Default)]
pub(super) struct GlobalRoute {
    pub(super) dgid: Gid,
    pub(super) flow_label: u32,
    pub(super) sgid_index: u8,
    pub(super) hop_limit: u8,
    pub(super) traffic_class: u8,
}

/// A union in C, which aligns it like its two 64-bit halves.
#[repr(C, align(8))]
#[derive(Clone, Copy, Default)]
pub(super) struct Gid(pub(super) [u8; 16]);

#[repr(C)]
#[derive(Clone, Copy, Default)]
pub(super) struct AddressHandle {
    pub(super) grh: GlobalRoute,
    pub(super) dlid: u16,
    pub(super) sl: u8,
    pub(super) src_path_bits: u8,
    pub(super) static_rate: u8,
    pub(super) is_global: u8,
    pub(super) port_num: u8,
}

#[repr(C)]
#[derive(Clone, Copy, Default)]
pub(super) struct QueuePairAttributes {
    pub(super) qp_state: c_uint,
    pub(super) cur_qp_state: c_uint,
    pub(super) path_mtu: c_uint,
    pub(super) path_mig_state: c_uint,
    pub(super) qkey: u32,
    pub(super) rq_psn: u32,
    pub(super) sq_psn: u32,
    pub(super) dest_qp_num: u32,
    pub(super) qp_access_flags: c_int,
    pub(super) cap: Capacity,
    pub(super) ah_attr: AddressHandle,
    pub(super) alt_ah_attr: AddressHandle,
    pub(super) pkey_index: u16,
    pub(super) alt_pkey_index: u16,
    pub(super) en_sqd_async_notify: u8,
    pub(super) sq_draining: u8,
    pub(super) max_rd_atomic: u8,
    pub(super) max_dest_rd_atomic: u8,
    pub(super) min_rnr_timer: u8,
    pub(super) port_num: u8,
    pub(super) timeout: u8,
    pub(super) retry_cnt: u8,
    pub(super) rnr_retry: u8,
    pub(super) alt_port_num: u8,
    pub(super) alt_timeout: u8,
    pub(super) rate_limit: u32,
}

#[repr(C)]
#[derive(Clone, Copy)]
pub(super) struct ScatterGather {
    pub(super) addr: u64,
    pub(super) length: u32,
    pub(super) lkey: u32,
}

#[repr(C)]
pub(super) struct SendRequest {
    pub(super) wr_id: u64,
    pub(super) next: *mut SendRequest,
    pub(super) sg_list: *mut ScatterGather,
    pub(super) num_sge: c_int,
    pub(super) opcode: c_uint,
    pub(super) send_flags: c_uint,
    /// In network byte order.
    pub(super) imm_data: u32,
    pub(super) remote_addr: u64,
    pub(super) rkey: u32,
    /// Atomics, datagrams, windows: what a write does not use.
    pub(super) unused: MaybeUninit<[u64; 9]>,
}

#[repr(C)]
#[derive(Debug)]
pub(super) struct ReceiveRequest {
    pub(super) wr_id: u64,
    pub(super) next: *mut ReceiveRequest,
    pub(super) sg_list: *mut ScatterGather,
    pub(super) num_sge: c_int,
}

#[repr(C)]
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Completion {
    pub(super) wr_id: u64,
    pub(super) status: c_uint,
    pub(super) opcode: c_uint,
    pub(super) vendor_err: u32,
    pub(super) byte_len: u32,
    /// In network byte order.
    pub(super) imm_data: u32,
    pub(super) qp_num: u32,
    pub(super) src_qp: u32,
    pub(super) wc_flags: c_uint,
    pub(super) pkey_index: u16,
    pub(super) slid: u16,
    pub(super) sl: u8,
    pub(super) dlid_path_bits: u8,
}

#[repr(C)]
#[derive(Clone, Copy)]
pub(super) struct DeviceAttributes {
    pub(super) fw_ver: [c_char; 64],
    pub(super) node_guid: u64,
    pub(super) sys_image_guid: u64,
    pub(super) max_mr_size: u64,
    pub(super) page_size_cap: u64,
    pub(super) vendor_id: u32,
    pub(super) vendor_part_id: u32,
    pub(super) hw_ver: u32,
    pub(super) max_qp: c_int,
    pub(super) max_qp_wr: c_int,
    pub(super) device_cap_flags: c_uint,
    pub(super) max_sge: c_int,
    pub(super) max_sge_rd: c_int,
    pub(super) max_cq: c_int,
    pub(super) max_cqe: c_int,
    pub(super) rest: [c_int; 22],
    pub(super) max_pkeys: u16,
    pub(super) local_ca_ack_delay: u8,
    pub(super) phys_port_cnt: u8,
}

#[repr(C)]
#[derive(Clone, Copy, Default)]
pub(super) struct PortAttributes {
    pub(super) state: c_uint,
    pub(super) max_mtu: c_uint,
    pub(super) active_mtu: c_uint,
    pub(super) gid_tbl_len: c_int,
    pub(super) port_cap_flags: u32,
    pub(super) max_msg_sz: u32,
    pub(super) bad_pkey_cntr: u32,
    pub(super) qkey_viol_cntr: u32,
    pub(super) pkey_tbl_len: u16,
    pub(super) lid: u16,
    pub(super) sm_lid: u16,
    pub(super) lmc: u8,
    pub(super) max_vl_num: u8,
    pub(super) sm_sl: u8,
    pub(super) subnet_timeout: u8,
    pub(super) init_type_reply: u8,
    pub(super) active_width: u8,
    pub(super) active_speed: u8,
    pub(super) phys_state: u8,
    pub(super) link_layer: u8,
    pub(super) flags: u8,
    pub(super) port_cap_flags2: u16,
}

#[repr(C)]
#[derive(Clone, Copy, Default)]
pub(super) struct GidEntry {
    pub(super) gid: Gid,
    pub(super) gid_index: u32,
    pub(super) port_num: u32,
    pub(super) gid_type: u32,
    pub(super) ndev_ifindex: u32,
}

#[repr(C)]
#[derive(Clone, Copy)]
pub(super) struct AsyncEvent {
    /// A union in C: an object's address, or in its low half a port's number.
    pub(super) element: u64,
    pub(super) event_type: c_uint,
}

#[cfg(test)]
mod tests {
    //! The layouts against the C header, where it is installed.
    use std::{mem, process::Command};

    use super::*;

    /// One line for each structure's size and each named field's offset, ours and C's.
    macro_rules! layout {
        ($($ours:ident = $theirs:literal { $($field:ident = $member:literal),* })*) => {{
            let ours: Vec<(String, usize)> = vec![$(
                (concat!("sizeof(", $theirs, ")").to_owned(), mem::size_of::<$ours>()),
                $((concat!("offsetof(", $theirs, ", ", $member, ")").to_owned(),
                    mem::offset_of!($ours, $field)),)*
            )*];
            ours
        }};
    }

    fn ours() -> Vec<(String, usize)> {
        let mut all = layout! {
            Context = "struct ibv_context" { ops = "ops", cmd_fd = "cmd_fd", async_fd = "async_fd" }
            ContextOps = "struct ibv_context_ops" { poll_cq = "poll_cq", req_notify_cq = "req_notify_cq",
                post_send = "post_send", post_recv = "post_recv" }
            ProtectionDomain = "struct ibv_pd" { context = "context", handle = "handle" }
            MemoryRegion = "struct ibv_mr" { addr = "addr", length = "length", lkey = "lkey", rkey = "rkey" }
            CompletionChannel = "struct ibv_comp_channel" { fd = "fd" }
            CompletionQueue = "struct ibv_cq" { context = "context", channel = "channel", cqe = "cqe" }
            QueuePair = "struct ibv_qp" { context = "context", qp_num = "qp_num", state = "state" }
            Capacity = "struct ibv_qp_cap" { max_inline_data = "max_inline_data" }
            QueuePairInit = "struct ibv_qp_init_attr" { cap = "cap", qp_type = "qp_type", sq_sig_all = "sq_sig_all" }
            GlobalRoute = "struct ibv_global_route" { sgid_index = "sgid_index", hop_limit = "hop_limit" }
            AddressHandle = "struct ibv_ah_attr" { dlid = "dlid", is_global = "is_global", port_num = "port_num" }
            QueuePairAttributes = "struct ibv_qp_attr" { path_mtu = "path_mtu", rq_psn = "rq_psn", sq_psn = "sq_psn",
                dest_qp_num = "dest_qp_num", qp_access_flags = "qp_access_flags", ah_attr = "ah_attr",
                pkey_index = "pkey_index", min_rnr_timer = "min_rnr_timer", port_num = "port_num",
                timeout = "timeout", retry_cnt = "retry_cnt", rnr_retry = "rnr_retry",
                max_rd_atomic = "max_rd_atomic", max_dest_rd_atomic = "max_dest_rd_atomic" }
            ScatterGather = "struct ibv_sge" { addr = "addr", length = "length", lkey = "lkey" }
            SendRequest = "struct ibv_send_wr" { next = "next", sg_list = "sg_list", num_sge = "num_sge",
                opcode = "opcode", send_flags = "send_flags", imm_data = "imm_data",
                remote_addr = "wr.rdma.remote_addr", rkey = "wr.rdma.rkey" }
            ReceiveRequest = "struct ibv_recv_wr" { next = "next", num_sge = "num_sge" }
            Completion = "struct ibv_wc" { status = "status", opcode = "opcode", byte_len = "byte_len",
                imm_data = "imm_data", qp_num = "qp_num", wc_flags = "wc_flags" }
            DeviceAttributes = "struct ibv_device_attr" { max_qp_wr = "max_qp_wr", max_cqe = "max_cqe",
                max_pkeys = "max_pkeys", phys_port_cnt = "phys_port_cnt" }
            PortAttributes = "struct ibv_port_attr" { active_mtu = "active_mtu", lid = "lid",
                link_layer = "link_layer" }
            GidEntry = "struct ibv_gid_entry" { gid_index = "gid_index", port_num = "port_num", gid_type = "gid_type" }
            AsyncEvent = "struct ibv_async_event" { event_type = "event_type" }
        };
        let device = layout! { Device = "struct ibv_device" { transport_type = "transport_type" } };
        // Not its size: only its beginning is declared.
        all.extend(device.into_iter().skip(1));
        let constants = [
            ("IBV_QPT_RC", u64::from(QPT_RC)),
            ("IBV_QPS_ERR", u64::from(QPS_ERR)),
            ("IBV_QP_DEST_QPN", ATTR_DEST_QPN as u64),
            ("IBV_QP_MIN_RNR_TIMER", ATTR_MIN_RNR_TIMER as u64),
            ("IBV_QP_MAX_DEST_RD_ATOMIC", ATTR_MAX_DEST_RD_ATOMIC as u64),
            ("IBV_ACCESS_REMOTE_WRITE", ACCESS_REMOTE_WRITE as u64),
            ("IBV_WR_RDMA_WRITE_WITH_IMM", u64::from(WR_RDMA_WRITE_WITH_IMM)),
            ("IBV_SEND_SIGNALED", u64::from(SEND_SIGNALED)),
            ("IBV_SEND_INLINE", u64::from(SEND_INLINE)),
            ("IBV_WC_RECV_RDMA_WITH_IMM", u64::from(WC_RECV_RDMA_WITH_IMM)),
            ("IBV_PORT_ACTIVE", u64::from(PORT_ACTIVE)),
            ("IBV_LINK_LAYER_ETHERNET", u64::from(LINK_LAYER_ETHERNET)),
            ("IBV_GID_TYPE_ROCE_V2", u64::from(GID_TYPE_ROCE_V2)),
            ("IBV_EVENT_DEVICE_FATAL", u64::from(EVENT_DEVICE_FATAL)),
            ("IBV_EVENT_PORT_ERR", u64::from(EVENT_PORT_ERR)),
        ];
        all.extend(constants.map(|(name, value)| (name.to_owned(), value as usize)));
        all
    }

    #[test]
    #[ignore = "needs libibverbs-dev and a C compiler; the RDMA run has both"]
    fn the_layouts_are_the_headers() {
        let place = std::env::temp_dir().join(format!("gleaner-verbs-{}", std::process::id()));
        let (source, program) = (place.with_extension("c"), place.with_extension("run"));
        let lines: String = ours()
            .iter()
            .map(|(expression, _)| format!("printf(\"%zu\\n\", (size_t)({expression}));\n"))
            .collect();
        let text = format!(
            "#include <stddef.h>\n#include <stdio.h>\n#include <infiniband/verbs.h>\nint main(void) {{\n{lines}}}\n"
        );
        std::fs::write(&source, text).unwrap();
        let built = Command::new("cc").arg(&source).arg("-o").arg(&program).output().unwrap();
        assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
        let printed = Command::new(&program).output().unwrap().stdout;
        let printed = String::from_utf8(printed).unwrap();
        for file in [source, program] {
            std::fs::remove_file(file).unwrap();
        }
        assert_eq!(printed.lines().count(), ours().len());
        for ((expression, ours), theirs) in ours().iter().zip(printed.lines()) {
            assert_eq!(ours.to_string(), theirs, "{expression}");
        }
    }
}
