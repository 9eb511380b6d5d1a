//! Functions that do what functions must not do. Each ends its call, or its worker; none may end anything else.

use std::time::Duration;

use gleaner_function::{Error, Output, function};

/// Reads where nothing is.
#[function]
fn crash(_: &[u8], output: &mut Output) -> Result<(), Error> {
    let nowhere = std::hint::black_box(std::ptr::without_provenance::<u8>(8));
    // SAFETY: none; that is its purpose.
    output.write(&[unsafe { nowhere.read_volatile() }])
}

/// Calls abort.
#[function]
fn abort(_: &[u8], _: &mut Output) -> Result<(), Error> {
    std::process::abort()
}

/// Uses up its stack.
#[function]
fn overflow_stack(input: &[u8], output: &mut Output) -> Result<(), Error> {
    #[allow(unconditional_recursion)]
    fn deeper(depth: u64) -> u64 {
        let mut frame = [depth; 64];
        std::hint::black_box(&mut frame);
        deeper(depth + 1) + frame[7]
    }
    let deepest = deeper(input.len() as u64);
    output.write(&deepest.to_le_bytes())
}

/// Never returns.
#[function]
fn loop_forever(_: &[u8], _: &mut Output) -> Result<(), Error> {
    loop {
        std::hint::spin_loop();
    }
}

/// Tries to start a process; the error's code is the system's.
#[function]
fn fork_it(_: &[u8], output: &mut Output) -> Result<(), Error> {
    // SAFETY: a child, if there is one, does nothing but sleep and end.
    match unsafe { libc::fork() } {
        0 => loop {
            std::thread::sleep(Duration::from_secs(1));
        },
        child if child > 0 => output.write(&child.to_le_bytes()),
        _ => {
            let error = std::io::Error::last_os_error();
            Err(Error::new(error.raw_os_error().unwrap_or(1), format!("fork: {error}")))
        }
    }
}

/// Tries to reach the network; the error's code is the system's.
#[function]
fn connect_out(_: &[u8], _: &mut Output) -> Result<(), Error> {
    match std::net::TcpStream::connect(("127.0.0.1", 9)) {
        Ok(_) => Ok(()),
        Err(error) => {
            Err(Error::new(error.raw_os_error().unwrap_or(1), format!("connect: {error}")))
        }
    }
}

/// Writes one byte past its output.
#[function]
fn overrun(_: &[u8], output: &mut Output) -> Result<(), Error> {
    let end = output.buffer().as_mut_ptr_range().end;
    // SAFETY: none; that is its purpose. The byte is still inside the worker's region.
    unsafe { end.write_volatile(0x55) };
    Ok(())
}

/// rFaaS's form of the same: it cannot know the capacity, and writes as many bytes as the input's u32 says.
///
/// # Safety
/// None.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn rfaas_fill(input: *mut u8, _: u32, output: *mut u8) -> u32 {
    // SAFETY: the worker's buffers, and more than that if the caller asks for more.
    unsafe {
        let len = input.cast::<u32>().read_unaligned();
        output.write_bytes(b'x', len as usize);
        len
    }
}

/// Takes memory and touches it until there is none.
#[function]
fn eat_memory(_: &[u8], _: &mut Output) -> Result<(), Error> {
    loop {
        let mut more = Vec::<u8>::new();
        if let Err(error) = more.try_reserve_exact(16 << 20) {
            return Err(Error::new(12, error.to_string()));
        }
        more.resize(16 << 20, 1);
        std::hint::black_box(more.leak());
    }
}

/// Ends its process with the status that the input's first byte says.
#[function]
fn exit_it(input: &[u8], _: &mut Output) -> Result<(), Error> {
    std::process::exit(i32::from(input.first().copied().unwrap_or(0)))
}

/// Panics.
#[function]
fn panic(input: &[u8], _: &mut Output) -> Result<(), Error> {
    panic!("as asked, with {} bytes", input.len())
}

/// Sleeps for as many milliseconds as the input's u64 says, and looks at nothing meanwhile.
#[function]
fn sleep(input: &[u8], _: &mut Output) -> Result<(), Error> {
    std::thread::sleep(Duration::from_millis(super::number(input)?));
    Ok(())
}

/// A state that cannot be made.
#[function(init = refuse)]
fn no_state(_: &mut Never, _: &[u8], _: &mut Output) -> Result<(), Error> {
    Ok(())
}

struct Never;

fn refuse() -> Result<Never, Error> {
    Err(Error::new(5, "no state today"))
}
