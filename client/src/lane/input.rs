//! What a call is sent with.

use gleaner_fabric::{Expected, Link, LinkError};

use crate::calls::Fill;

/// What a call is sent with. It stays in the call's block, since the call may have to be sent again.
pub(crate) trait Input {
    fn send<L: Link + ?Sized>(
        &mut self,
        link: &mut L,
        call: &Expected,
        time_ns: u64,
    ) -> Result<(), Box<LinkError>>;
    /// Writes it elsewhere, as long as there is no slot.
    fn fill(&mut self, buffer: &mut [u8]);
}

impl Input for &[u8] {
    #[inline(always)]
    fn send<L: Link + ?Sized>(
        &mut self,
        link: &mut L,
        call: &Expected,
        time_ns: u64,
    ) -> Result<(), Box<LinkError>> {
        link.ask_keeping(call, self, time_ns)
    }

    fn fill(&mut self, buffer: &mut [u8]) {
        buffer.copy_from_slice(self);
    }
}

impl Input for Fill<'_> {
    #[inline(always)]
    fn send<L: Link + ?Sized>(
        &mut self,
        link: &mut L,
        call: &Expected,
        time_ns: u64,
    ) -> Result<(), Box<LinkError>> {
        self(input(link, call));
        link.ask(call, time_ns)
    }

    fn fill(&mut self, buffer: &mut [u8]) {
        self(buffer);
    }
}

/// Where a call's input lies.
#[inline(always)]
pub(crate) fn input<'a, L: Link + ?Sized>(link: &'a mut L, call: &Expected) -> &'a mut [u8] {
    let input = call.input();
    &mut link.outgoing(input)[..input.capacity as usize]
}
