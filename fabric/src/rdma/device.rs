//! Devices, what they and their ports are, and what happens to them while they are open.
// UNSAFETY: calls of libibverbs with pointers that it gave, owned by one value each and given back once.
#![allow(unsafe_code)]

use std::{
    ffi::CStr,
    io, mem,
    os::fd::{AsFd, BorrowedFd, RawFd},
    ptr::NonNull,
    sync::{Arc, Mutex, PoisonError},
};

use gleaner_proto::endpoint::{Address, GidKind, Mtu};
use libc::c_int;
use nix::{
    fcntl::{FcntlArg, OFlag, fcntl},
    sys::eventfd::{EfdFlags, EventFd},
};

use super::{
    error::{RdmaError, Remedy},
    ffi,
    library::{Verbs, verbs},
};

/// The most ports that are looked at: their states are bits of one word.
const PORTS_MAX: u8 = 62;
/// The bit of the device itself.
const FATAL: u64 = 1 << 63;
/// The most GIDs that are looked at.
const GIDS_MAX: usize = 256;

/// An open device. Clones are the same one; it closes with the last thing that was made of it.
#[derive(Debug, Clone)]
pub struct Device(pub(super) Arc<Opened>);

/// One port of a device, as it was when it was looked at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Port {
    /// From 1.
    pub number: u8,
    /// It carries traffic.
    pub active: bool,
    /// The most bytes of a packet.
    pub mtu: Mtu,
    /// Its addresses, the best first.
    pub gids: Vec<Gid>,
}

/// One of a port's addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Gid {
    /// Its place in the port's table.
    pub index: u8,
    /// What a peer is told.
    pub address: Address,
}

/// What limits a device has that matter here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Most work requests of a queue.
    pub queue_max: u32,
    /// Most entries of a completion queue.
    pub completions_max: u32,
    /// Ports.
    pub ports: u8,
}

/// What a device says is wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum DeviceFault {
    /// It needs a reset.
    #[error("the RDMA device has failed: see the kernel's log")]
    Device,
    /// Its cable, its interface or the switch.
    #[error("port {0} of the RDMA device is down")]
    Port(u8),
}

#[derive(Debug)]
pub(super) struct Opened {
    pub(super) context: NonNull<ffi::Context>,
    pub(super) verbs: &'static Verbs,
    pub(super) name: String,
    /// Bit n: port n is down; [`FATAL`]: all of it is. Looked at where one sleeps, never where one spins.
    faults: Mutex<u64>,
    /// Readable while there is a fault.
    alarm: EventFd,
}

// SAFETY: the verbs may be called by any thread, several at a time (ibv_open_device's man page and the providers' locks);
// what is ours is atomic.
unsafe impl Send for Opened {}
// SAFETY: as above.
unsafe impl Sync for Opened {}

impl std::fmt::Debug for Verbs {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("libibverbs")
    }
}

/// The library's list of devices, given back on drop.
struct List {
    verbs: &'static Verbs,
    first: NonNull<*mut ffi::Device>,
    count: usize,
}

impl List {
    fn new() -> Result<Self, RdmaError> {
        let verbs = verbs()?;
        let mut count: c_int = 0;
        // SAFETY: `count` outlives the call.
        let first = unsafe { (verbs.get_device_list)(&mut count) };
        let first = NonNull::new(first).ok_or(RdmaError::NoDevice)?;
        Ok(Self { verbs, first, count: usize::try_from(count).unwrap_or(0) })
    }

    /// Those that can do what a link needs, with their names.
    fn usable(&self) -> Vec<(NonNull<ffi::Device>, String)> {
        // SAFETY: the list has `count` entries and lives as long as self.
        let all = unsafe { std::slice::from_raw_parts(self.first.as_ptr(), self.count) };
        let all = all.iter().filter_map(|device| NonNull::new(*device));
        // SAFETY: an entry of a live list.
        all.filter(|device| unsafe { device.as_ref() }.transport_type == ffi::TRANSPORT_IB)
            .map(|device| {
                // SAFETY: as above; the name is a C string that lives as long.
                let name = unsafe { CStr::from_ptr((self.verbs.get_device_name)(device.as_ptr())) };
                (device, name.to_string_lossy().into_owned())
            })
            .collect()
    }
}

impl Drop for List {
    fn drop(&mut self) {
        // SAFETY: the list is the library's, and given back once; devices that were opened keep what they need.
        unsafe { (self.verbs.free_device_list)(self.first.as_ptr()) };
    }
}

/// The names of the devices that a link can use.
pub fn devices() -> Result<Vec<String>, RdmaError> {
    Ok(List::new()?.usable().into_iter().map(|(_, name)| name).collect())
}

impl Device {
    /// Opens the device of that name.
    pub fn open(name: &str) -> Result<Self, RdmaError> {
        let list = List::new()?;
        let usable = list.usable();
        let Some((device, _)) = usable.iter().find(|(_, found)| found == name) else {
            let there = usable.into_iter().map(|(_, name)| name).collect();
            return Err(RdmaError::NoSuchDevice { wanted: name.to_owned(), there });
        };
        let (verbs, name) = (list.verbs, name.to_owned());
        let alarm = alarm().map_err(|source| RdmaError::Verb {
            device: name.clone(),
            step: "make an eventfd for it",
            source,
            remedy: Remedy::None,
        })?;
        // SAFETY: an entry of a live list.
        let context = unsafe { (verbs.open_device)(device.as_ptr()) };
        let Some(context) = NonNull::new(context) else {
            return Err(RdmaError::Verb {
                device: name,
                step: "open it; may this user write to /dev/infiniband/uverbs*?",
                source: io::Error::last_os_error(),
                remedy: Remedy::Objects,
            });
        };
        let opened = Opened { context, verbs, name, faults: Mutex::new(0), alarm };
        let watched = set_nonblocking(opened.events_fd());
        watched.map_err(|error| opened.failed_with("watch it", error))?;
        Ok(Self(Arc::new(opened)))
    }

    /// Opens the first device that has an active port, and says which port.
    pub fn open_active() -> Result<(Self, Port), RdmaError> {
        let names = devices()?;
        let mut last = RdmaError::NoDevice;
        for name in names {
            let device = match Self::open(&name) {
                Ok(device) => device,
                Err(error) => {
                    last = error;
                    continue;
                }
            };
            match device.active_port() {
                Ok(port) => return Ok((device, port)),
                Err(error) => last = error,
            }
        }
        Err(last)
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.0.name
    }

    /// What it can do.
    pub fn limits(&self) -> Result<Limits, RdmaError> {
        // SAFETY: all-zero is a value of it.
        let mut found: ffi::DeviceAttributes = unsafe { mem::zeroed() };
        // SAFETY: the context is open, and `found` outlives the call.
        let code = unsafe { (self.0.verbs.query_device)(self.0.context.as_ptr(), &mut found) };
        self.0.check("query it", code)?;
        Ok(Limits {
            queue_max: found.max_qp_wr.try_into().unwrap_or(0),
            completions_max: found.max_cqe.try_into().unwrap_or(0),
            ports: found.phys_port_cnt.min(PORTS_MAX),
        })
    }

    /// Its ports, as they are now.
    pub fn ports(&self) -> Result<Vec<Port>, RdmaError> {
        let gids = self.gids()?;
        (1..=self.limits()?.ports).map(|number| self.port(number, &gids)).collect()
    }

    /// Its first port that is active and has an address.
    pub fn active_port(&self) -> Result<Port, RdmaError> {
        let mut ports = self.ports()?.into_iter();
        let found = ports.find(|port| port.active && !port.gids.is_empty());
        found.ok_or_else(|| RdmaError::NoPort { device: self.0.name.clone() })
    }

    /// What is wrong with a port of it by now.
    pub fn fault(&self, port: u8) -> Option<DeviceFault> {
        self.0.fault(port)
    }

    /// The descriptor that its verbs go through: what a system-call filter must know.
    pub fn command_fd(&self) -> RawFd {
        // SAFETY: the context is open, and nobody writes to this field.
        unsafe { self.0.context.as_ref() }.cmd_fd
    }

    fn port(&self, number: u8, gids: &[ffi::GidEntry]) -> Result<Port, RdmaError> {
        let mut found = ffi::PortAttributes::default();
        // SAFETY: the context is open, and `found` outlives the call and is larger than what older versions write.
        let code =
            unsafe { (self.0.verbs.query_port)(self.0.context.as_ptr(), number, &mut found) };
        self.0.check("query its port", code)?;
        let of_port = gids.iter().filter(|entry| entry.port_num == u32::from(number));
        let mut gids: Vec<Gid> = of_port.filter_map(|entry| gid(entry, &found)).collect();
        // Stable: among equals, the table's order.
        gids.sort_by_key(|gid| std::cmp::Reverse(gid.address.rank()));
        let active = found.state == ffi::PORT_ACTIVE;
        let mtu = Mtu::from_code(found.active_mtu as u8).unwrap_or(Mtu::B256);
        Ok(Port { number, active, mtu, gids })
    }

    fn gids(&self) -> Result<Vec<ffi::GidEntry>, RdmaError> {
        let mut entries = vec![ffi::GidEntry::default(); GIDS_MAX];
        // SAFETY: the context is open; `entries` has room for as many entries of this size as are said.
        let count = unsafe {
            (self.0.verbs.query_gid_table)(
                self.0.context.as_ptr(),
                entries.as_mut_ptr(),
                entries.len(),
                0,
                mem::size_of::<ffi::GidEntry>(),
            )
        };
        let Ok(count) = usize::try_from(count) else {
            return Err(self.0.failed("read its GIDs", -count as c_int));
        };
        entries.truncate(count);
        Ok(entries)
    }
}

impl Port {
    /// The best of its addresses that can speak with a peer's.
    pub fn gid_for(&self, peer: &Address) -> Option<Gid> {
        self.gids.iter().find(|gid| gid.address.reaches(peer)).copied()
    }
}

fn gid(entry: &ffi::GidEntry, port: &ffi::PortAttributes) -> Option<Gid> {
    let kind = match (port.link_layer, entry.gid_type) {
        (ffi::LINK_LAYER_ETHERNET, ffi::GID_TYPE_ROCE_V1) => GidKind::RoceV1,
        (ffi::LINK_LAYER_ETHERNET, ffi::GID_TYPE_ROCE_V2) => GidKind::RoceV2,
        (ffi::LINK_LAYER_ETHERNET, _) => return None,
        _ => GidKind::Infiniband,
    };
    let address = Address { kind, gid: entry.gid.0, lid: port.lid };
    Some(Gid { index: u8::try_from(entry.gid_index).ok()?, address })
}

impl Opened {
    /// Where the provider's own functions lie.
    pub(super) fn ops(&self) -> &ffi::ContextOps {
        // SAFETY: the context is open, and its functions are set once, when it is opened.
        unsafe { &self.context.as_ref().ops }
    }

    /// What became readable when something happened to the device.
    pub(super) fn events_fd(&self) -> BorrowedFd<'_> {
        // SAFETY: it is open for as long as the context, which lives as long as self.
        unsafe { BorrowedFd::borrow_raw(self.context.as_ref().async_fd) }
    }

    /// What stays readable for as long as there is a fault that somebody has taken note of.
    pub(super) fn alarm_fd(&self) -> BorrowedFd<'_> {
        self.alarm.as_fd()
    }

    /// Takes note of what has happened to the device, for all that use it. What happened to a queue pair is seen in its
    /// completions.
    fn take_events(&self) {
        let mut event = ffi::AsyncEvent { element: 0, event_type: 0 };
        // SAFETY: the context is open and `event` outlives both calls; the descriptor does not block.
        while unsafe { (self.verbs.get_async_event)(self.context.as_ptr(), &mut event) } == 0 {
            let port = 1 << (event.element as u32).min(u32::from(PORTS_MAX));
            match event.event_type {
                ffi::EVENT_DEVICE_FATAL | ffi::EVENT_CQ_ERR => self.note(|_| FATAL),
                ffi::EVENT_PORT_ERR => self.note(|faults| faults | port),
                ffi::EVENT_PORT_ACTIVE => self.note(|faults| faults & !port),
                _ => {}
            }
            // SAFETY: it was got, and is acknowledged once.
            unsafe { (self.verbs.ack_async_event)(&mut event) };
        }
    }

    /// Changes what is known, and with it the alarm, which those see who sleep while another takes the event.
    fn note(&self, change: impl Fn(u64) -> u64) {
        let mut faults = self.faults.lock().unwrap_or_else(PoisonError::into_inner);
        *faults = change(*faults) | (*faults & FATAL);
        // A full or an empty counter is as it should be.
        let _ = match *faults {
            0 => self.alarm.read().map(drop),
            _ => self.alarm.write(1).map(drop),
        };
    }

    /// What is wrong with a port, as far as the device has said by now.
    pub(super) fn fault(&self, port: u8) -> Option<DeviceFault> {
        self.take_events();
        let faults = *self.faults.lock().unwrap_or_else(PoisonError::into_inner);
        match faults {
            _ if faults & FATAL != 0 => Some(DeviceFault::Device),
            _ if faults & 1 << port != 0 => Some(DeviceFault::Port(port)),
            _ => None,
        }
    }

    /// 0 is well; else an error number.
    #[inline]
    pub(super) fn check(&self, step: &'static str, code: c_int) -> Result<(), RdmaError> {
        if code == 0 { Ok(()) } else { Err(self.failed(step, code)) }
    }

    /// The error of a verb that gave its number.
    #[cold]
    pub(super) fn failed(&self, step: &'static str, code: c_int) -> RdmaError {
        let code = if code > 0 { code } else { -code };
        self.failed_with(step, io::Error::from_raw_os_error(code))
    }

    /// The error of a verb that left it in errno.
    pub(super) fn last_failed(&self, step: &'static str) -> RdmaError {
        self.failed_with(step, io::Error::last_os_error())
    }

    pub(super) fn failed_with(&self, step: &'static str, source: io::Error) -> RdmaError {
        let remedy = match source.raw_os_error() {
            Some(libc::ENOMEM) => Remedy::LockedMemory,
            Some(libc::EAGAIN) => Remedy::Objects,
            _ => Remedy::None,
        };
        RdmaError::Verb { device: self.name.clone(), step, source, remedy }
    }
}

impl Drop for Opened {
    fn drop(&mut self) {
        // SAFETY: everything that was made of it holds this value, so it is the last.
        unsafe { (self.verbs.close_device)(self.context.as_ptr()) };
    }
}

fn alarm() -> io::Result<EventFd> {
    let flags = EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK;
    Ok(EventFd::from_flags(flags)?)
}

/// Makes reads of a descriptor return at once.
pub(super) fn set_nonblocking(fd: BorrowedFd<'_>) -> io::Result<()> {
    let flags = OFlag::from_bits_retain(fcntl(fd, FcntlArg::F_GETFL)?);
    fcntl(fd, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
    Ok(())
}
