//! Administrators' commands. What narrows takes effect at once and is stored after; what widens is stored first.

use std::collections::BTreeMap;

use gleaner_lease::state::State;
use gleaner_proto::{hostlist, ids::NodeName};

use super::{Core, Turn, storing::Then};
use crate::{
    effect::{Need, Reply},
    event::{AdminCommand, CallId, Identity},
    record::Record,
    refusal::Refusal,
};

/// A drained node.
#[derive(Debug)]
pub(super) struct Drained {
    pub(super) reason: String,
    /// Which command did it.
    command: u64,
}

/// The kill switch is off.
#[derive(Debug)]
pub(super) struct Off {
    pub(super) reason: String,
    /// Which command did it.
    pub(super) command: u64,
}

/// A command that begins when it is stored. Commands after `upto` stay in effect.
#[derive(Debug)]
pub(super) enum Later {
    Resume { nodes: Vec<NodeName>, upto: u64 },
    On { upto: u64 },
}

/// The stored drains.
pub(super) fn restore(drained: Vec<(NodeName, String)>) -> BTreeMap<NodeName, Drained> {
    drained.into_iter().map(|(name, reason)| (name, Drained { reason, command: 0 })).collect()
}

impl Core {
    pub(super) fn on_admin(
        &mut self,
        turn: &mut Turn<'_>,
        call: CallId,
        who: Identity,
        command: AdminCommand,
    ) {
        self.commands += 1;
        let action = describe(&command);
        let outcome = if self.policy.is_admin(who.uid) {
            self.command(turn, call, command)
        } else {
            Err(Refusal::NotAdmin { user: who.user.clone() })
        };
        let unix_ms = turn.wall_ms;
        let audit = |outcome| Record::Audit { who, action, outcome, unix_ms };
        let mut records = std::mem::take(&mut turn.records);
        let (need, then) = match outcome {
            Ok((need, then)) => {
                records.push(audit("accepted".to_owned()));
                (need, then)
            }
            Err(refusal) => {
                records.push(audit(refusal.to_string()));
                (Need::Journal, Then::Refuse { call, refusal })
            }
        };
        self.persist(turn, records, need, then);
    }

    fn command(
        &mut self,
        turn: &mut Turn<'_>,
        call: CallId,
        command: AdminCommand,
    ) -> Result<(Need, Then), Refusal> {
        match command {
            AdminCommand::Drain { nodelist, reason } => {
                let nodes = self.listed(&nodelist)?;
                self.drain(turn, &nodes, &reason);
                let reply = Reply::Nodes(nodes);
                Ok((Need::Journal, Then::ReplyIfStored { call, reply }))
            }
            AdminCommand::Resume { nodelist } => {
                let mut nodes = self.listed(&nodelist)?;
                nodes.retain(|name| self.drained.contains_key(name));
                turn.records.extend(nodes.iter().map(|node| Record::Resume { node: node.clone() }));
                let command = Later::Resume { nodes, upto: self.commands };
                Ok((Need::Store, Then::Apply { call, command }))
            }
            AdminCommand::SwitchOff { reason } => {
                let reply = self.switch_off(turn, reason);
                Ok((Need::Journal, Then::ReplyIfStored { call, reply }))
            }
            AdminCommand::SwitchOn => {
                turn.records.push(Record::Switch { off: None, unix_ms: turn.wall_ms });
                let command = Later::On { upto: self.commands };
                Ok((Need::Store, Then::Apply { call, command }))
            }
        }
    }

    fn drain(&mut self, turn: &mut Turn<'_>, nodes: &[NodeName], reason: &str) {
        let (command, unix_ms) = (self.commands, turn.wall_ms);
        for name in nodes {
            let reason = reason.to_owned();
            turn.records.push(Record::Drain {
                node: name.clone(),
                reason: reason.clone(),
                unix_ms,
            });
            self.drained.insert(name.clone(), Drained { reason, command });
        }
        self.reassess(turn);
    }

    fn switch_off(&mut self, turn: &mut Turn<'_>, reason: String) -> Reply {
        let held = |core: &Self, name: &NodeName| {
            core.issuer
                .node(name)
                .is_some_and(|book| matches!(book.state, State::Live | State::Ending))
        };
        let vacating = self.nodes.keys().filter(|name| held(self, name)).count();
        turn.records.push(Record::Switch { off: Some(reason.clone()), unix_ms: turn.wall_ms });
        self.switched_off = Some(Off { reason, command: self.commands });
        self.reassess(turn);
        Reply::Switched { off: true, vacating: u32::try_from(vacating).unwrap_or(u32::MAX) }
    }

    /// A stored command begins.
    pub(super) fn apply(&mut self, turn: &mut Turn<'_>, call: CallId, command: Later) {
        let reply = match command {
            Later::Resume { nodes, upto } => {
                for name in &nodes {
                    if self.drained.get(name).is_some_and(|drained| drained.command < upto) {
                        self.drained.remove(name);
                    }
                }
                Reply::Nodes(nodes)
            }
            Later::On { upto } => {
                if self.switched_off.as_ref().is_some_and(|off| off.command < upto) {
                    self.switched_off = None;
                }
                Reply::Switched { off: self.switched_off.is_some(), vacating: 0 }
            }
        };
        self.reassess(turn);
        turn.reply(call, Ok(reply));
    }

    /// The nodes of a hostlist, all of which must be known.
    fn listed(&self, nodelist: &str) -> Result<Vec<NodeName>, Refusal> {
        let mut nodes = hostlist::expand(nodelist)?;
        nodes.sort();
        nodes.dedup();
        if nodes.is_empty() {
            return Err(Refusal::NoNodes);
        }
        let known =
            |name: &NodeName| self.nodes.contains_key(name) || self.drained.contains_key(name);
        let unknown: Vec<&NodeName> = nodes.iter().filter(|name| !known(name)).collect();
        if !unknown.is_empty() && self.slurm.asked.is_some() {
            return Err(Refusal::UnknownNodes { nodes: hostlist::compress(unknown) });
        }
        Ok(nodes)
    }
}

fn describe(command: &AdminCommand) -> String {
    match command {
        AdminCommand::Drain { nodelist, reason } => format!("drain {nodelist}: {reason}"),
        AdminCommand::Resume { nodelist } => format!("resume {nodelist}"),
        AdminCommand::SwitchOff { reason } => format!("off: {reason}"),
        AdminCommand::SwitchOn => "on".to_owned(),
    }
}
