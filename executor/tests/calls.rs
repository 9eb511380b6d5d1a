//! Calls, end to end: client, agent, keeper and worker are the real ones, the harvester is as small as can be.

mod service;

use service::{Service, functions, request};

#[test]
fn a_call_comes_back() {
    let service = Service::start(&["n1"]);
    let pool = service.client().acquire(request()).unwrap();
    let echo = pool.function(&functions(), "echo").unwrap();
    assert_eq!(echo.invoke(b"hello").unwrap(), b"hello");
    pool.release().unwrap();
}
