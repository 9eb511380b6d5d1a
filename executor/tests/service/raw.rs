//! A client that says what a test wants it to say: the greeting and the frames of the control stream, by hand.

use std::{
    io::{Read, Write},
    net::TcpStream,
    time::Duration,
};

use ed25519_dalek::{Signer, SigningKey};
use gleaner_proto::{
    PROTOCOL,
    control::{attach_digest, lane_digest},
    framing::{self, Incoming},
    v1::{self, FromAgent, ToAgent, from_agent, hello::Purpose, to_agent},
};

pub(crate) struct Raw {
    pub(crate) stream: TcpStream,
    incoming: Incoming<FromAgent>,
}

/// What a greeting came to: the executor's answer to the proof, or `None` if it closed the connection.
pub(crate) type Answer = Option<from_agent::Message>;

impl Raw {
    pub(crate) fn dial(address: &str) -> Self {
        let stream = TcpStream::connect(address).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        stream.set_nodelay(true).unwrap();
        Self { stream, incoming: Incoming::new() }
    }

    pub(crate) fn send(&mut self, message: to_agent::Message) {
        let frame = framing::encode(&ToAgent { message: Some(message) });
        // A test that goes too far is cut off by the executor: the next read tells.
        let _ = self.stream.write_all(&frame);
    }

    pub(crate) fn read(&mut self) -> Answer {
        loop {
            if let Some(message) = self.incoming.take().unwrap() {
                return message.message;
            }
            let mut bytes = [0; 4096];
            match self.stream.read(&mut bytes) {
                Ok(0) => return None,
                Ok(length) => self.incoming.push(&bytes[..length]),
                Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => return None,
                Err(error) => panic!("the executor says nothing: {error}"),
            }
        }
    }

    /// Hello, challenge, proof by `key`; the answer.
    pub(crate) fn greet(&mut self, purpose: Purpose, key: &SigningKey) -> Answer {
        self.greet_changed(purpose.clone(), &purpose, key)
    }

    /// The same where another purpose arrives than was signed.
    pub(crate) fn greet_changed(
        &mut self,
        arrives: Purpose,
        signed: &Purpose,
        key: &SigningKey,
    ) -> Answer {
        let nonce = [9; 32];
        let digest_of = |executor_nonce: &[u8]| match signed {
            Purpose::Attach(attach) => attach_digest(&nonce, executor_nonce, &attach.token),
            Purpose::DataLane(lane) => {
                lane_digest(&nonce, executor_nonce, lane.session_id, lane.lane, &lane.endpoint)
            }
        };
        let hello = v1::Hello {
            protocol: PROTOCOL,
            client_nonce: nonce.to_vec().into(),
            purpose: Some(arrives),
        };
        self.send(to_agent::Message::Hello(hello));
        let Some(from_agent::Message::Challenge(challenge)) = self.read() else { return None };
        let signature = key.sign(&digest_of(&challenge.executor_nonce)).to_bytes().to_vec().into();
        self.send(to_agent::Message::Proof(v1::Proof { signature }));
        self.read()
    }

    /// Attaches with a token; the executor's answer.
    pub(crate) fn attach(address: &str, token: &[u8], key: &SigningKey) -> (Self, Answer) {
        let mut raw = Self::dial(address);
        let attach = v1::Attach {
            token: token.to_vec().into(),
            window: 4,
            slot_bytes: 4096,
            arena_bytes: 0,
            waiting: v1::Waiting::Warm as i32,
            hot_timeout_ns: 0,
        };
        let answer = raw.greet(Purpose::Attach(attach), key);
        (raw, answer)
    }
}

/// The refusal in an answer.
pub(crate) fn refusal(answer: &Answer) -> String {
    match answer {
        Some(from_agent::Message::Error(error)) => {
            format!("{}: {}", error.code().as_str_name(), error.message)
        }
        other => format!("{other:?}"),
    }
}
