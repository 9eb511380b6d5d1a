//! The device and the port that this process uses, with the timers that it was configured with: what client and worker open
//! once, and make links of.
#![forbid(unsafe_code)]

use std::{fmt, str::FromStr, time::Duration};

use gleaner_proto::endpoint::{Address, Mtu};

use super::{
    device::{Device, Gid, Port},
    error::RdmaError,
    pair::Timers,
    setup::Unconnected,
};
use crate::link::Geometry;

/// What an operator may set.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// The device's name; `None`: the first that has an active port.
    pub device: Option<String>,
    /// The largest packet, whatever the port takes.
    pub mtu_max: Mtu,
    /// How long queue pairs try.
    pub timers: Timers,
}

/// On a worker's command line: it reads no configuration.
impl fmt::Display for Settings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Timers { timeout, retries, no_receive_pause, no_receive_retries } = self.timers;
        write!(f, "{} {timeout} {retries} {no_receive_pause} ", self.mtu_max.bytes())?;
        write!(f, "{no_receive_retries} {}", self.device.as_deref().unwrap_or(""))
    }
}

impl FromStr for Settings {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let bad = "no RDMA settings: a worker is started by its keeper";
        let mut words = text.split(' ');
        let mut number = || words.next().and_then(|word| word.parse::<u32>().ok()).ok_or(bad);
        let mtu_max = Mtu::within(number()?);
        let mut byte = || number().and_then(|number| u8::try_from(number).map_err(|_| bad));
        let (timeout, retries, no_receive_pause, no_receive_retries) =
            (byte()?, byte()?, byte()?, byte()?);
        let device = words.next().filter(|name| !name.is_empty()).map(str::to_owned);
        let timers = Timers { timeout, retries, no_receive_pause, no_receive_retries };
        Ok(Self { device, mtu_max, timers })
    }
}

impl Default for Settings {
    fn default() -> Self {
        Self { device: None, mtu_max: Mtu::B4096, timers: Timers::default() }
    }
}

/// A port of an open device.
#[derive(Debug, Clone)]
pub struct Adapter {
    /// The device.
    pub device: Device,
    /// The port, as it was when it was opened.
    pub port: Port,
    timers: Timers,
}

impl Adapter {
    /// Opens the device, which must have an active port.
    pub fn open(settings: &Settings) -> Result<Self, RdmaError> {
        let (device, mut port) = match &settings.device {
            Some(name) => {
                let device = Device::open(name)?;
                let port = device.active_port()?;
                (device, port)
            }
            None => Device::open_active()?,
        };
        port.mtu = port.mtu.min(settings.mtu_max);
        Ok(Self { device, port, timers: settings.timers })
    }

    /// Where peers reach it now; nowhere while its port is down.
    pub fn addresses(&self) -> Vec<Address> {
        let ports = self.device.ports().unwrap_or_default();
        let now = ports.into_iter().find(|port| port.number == self.port.number && port.active);
        now.map(|port| port.gids.iter().map(|gid| gid.address).collect()).unwrap_or_default()
    }

    /// The best of our addresses that one of the peer's may be reached from.
    pub fn gid_for(&self, peer: &[Address]) -> Result<Gid, RdmaError> {
        let reaches = |gid: &&Gid| peer.iter().any(|address| gid.address.reaches(address));
        self.port.gids.iter().find(reaches).copied().ok_or_else(|| RdmaError::NoGid {
            device: self.device.name().to_owned(),
            peer: peer.first().map_or("none at all".into(), Address::to_string),
        })
    }

    /// One end of a link: memory is pinned from here on.
    pub fn prepare(&self, gid: Gid, geometry: Geometry) -> Result<Unconnected, RdmaError> {
        Unconnected::new(self, gid, geometry)
    }

    pub(super) fn timers(&self) -> Timers {
        self.timers
    }
}

impl Timers {
    /// The verbs' units for these times, rounded up to what they can say.
    pub fn new(answer: Duration, retries: u32, no_receive_pause: Duration) -> Self {
        Self {
            timeout: timeout_code(answer),
            retries: retries.min(7) as u8,
            no_receive_pause: pause_code(no_receive_pause),
            ..Self::default()
        }
    }
}

/// The least n from 1 to 31 with 4.096 µs × 2^n at least that long.
fn timeout_code(answer: Duration) -> u8 {
    (1..31).find(|n| Duration::from_nanos(4096 << n) >= answer).unwrap_or(31)
}

/// The pauses that a device can ask for, in units of 10 µs, by their codes from 1 on (InfiniBand specification, table 45).
const PAUSES: [u32; 31] = [
    1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024, 1536, 2048,
    3072, 4096, 6144, 8192, 12_288, 16_384, 24_576, 32_768, 49_152,
];

/// The least pause that is as long.
fn pause_code(pause: Duration) -> u8 {
    let long_enough = |units: &u32| Duration::from_micros(u64::from(*units) * 10) >= pause;
    PAUSES.iter().position(long_enough).map_or(PAUSES.len(), |at| at + 1) as u8
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_go_through_a_command_line() {
        let named = Settings { device: Some("mlx5_0".into()), ..Settings::default() };
        for settings in [Settings::default(), named] {
            assert_eq!(settings.to_string().parse(), Ok(settings));
        }
        assert!("4096 14 6".parse::<Settings>().is_err());
    }

    #[test]
    fn times_are_rounded_up_to_what_a_device_knows() {
        let ms = Duration::from_millis;
        assert_eq!(timeout_code(ms(67)), 14);
        assert_eq!(timeout_code(ms(68)), 15);
        assert_eq!(timeout_code(Duration::ZERO), 1);
        assert_eq!(timeout_code(Duration::MAX), 31);
        assert_eq!(pause_code(Duration::from_micros(10)), 1);
        assert_eq!(pause_code(Duration::from_micros(640)), 12);
        assert_eq!(pause_code(ms(491)), 31);
        assert_eq!(pause_code(Duration::MAX), 31);
        let usual = Timers::new(ms(67), 6, Duration::from_micros(10));
        assert_eq!(usual, Timers::default());
    }
}
