//! Whose processes may run here: root's never, system users' never, and without root only the keeper's own.

use nix::unistd::{User, getegid, geteuid};

use super::KeeperError;

/// The rule, with every name looked up before the loop begins.
#[derive(Debug, Clone, Copy)]
pub(super) enum Users {
    /// As root: any uid from `uid_min` up; `stand_in` for root.
    Many {
        /// The lowest uid that leases may have.
        uid_min: u32,
        /// Uid and gid of the configured worker user.
        stand_in: (u32, u32),
    },
    /// Without root: this uid and gid alone.
    Single(u32, u32),
}

impl Users {
    /// The rule for this process.
    pub(super) fn of_this_process(config: &gleaner_config::Executor) -> Result<Self, KeeperError> {
        if !geteuid().is_root() {
            return Ok(Self::Single(geteuid().as_raw(), getegid().as_raw()));
        }
        let stand_in = look_up("worker_user", &config.worker_user)?;
        Ok(Self::Many { uid_min: config.uid_min, stand_in })
    }

    /// The uid and gid that a lease's worker becomes; `None` if it may not run here.
    pub(super) fn map(&self, uid: u32, gid: u32) -> Option<(u32, u32)> {
        match *self {
            Self::Many { stand_in, .. } if uid == 0 => Some(stand_in),
            Self::Many { uid_min, .. } => {
                (uid >= uid_min && uid != u32::MAX && gid != 0).then_some((uid, gid))
            }
            Self::Single(own, own_gid) => (uid == own).then_some((own, own_gid)),
        }
    }
}

/// Uid and gid of a user that the configuration names under `key`; root is none.
pub(super) fn look_up(key: &'static str, name: &str) -> Result<(u32, u32), KeeperError> {
    let found = User::from_name(name).ok().flatten();
    let ids = found.map(|user| (user.uid.as_raw(), user.gid.as_raw()));
    let bad = || KeeperError::User { key, name: name.to_owned() };
    ids.filter(|&(uid, gid)| uid != 0 && gid != 0).ok_or_else(bad)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn root_is_mapped_and_system_users_are_refused() {
        let users = Users::Many { uid_min: 1000, stand_in: (65534, 65534) };
        assert_eq!(users.map(0, 0), Some((65534, 65534)));
        assert_eq!(users.map(0, 5), Some((65534, 65534)));
        assert_eq!(users.map(1000, 100), Some((1000, 100)));
        assert_eq!(users.map(1000, 0), None);
        assert_eq!(users.map(999, 100), None);
        assert_eq!(users.map(u32::MAX, 100), None);
        let single = Users::Single(1000, 100);
        assert_eq!(single.map(1000, 7), Some((1000, 100)));
        assert_eq!(single.map(0, 0), None);
    }
}
