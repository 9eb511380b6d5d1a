//! Which nodes have room for a request, and what is said if none has.

use std::collections::{BTreeMap, BTreeSet};

use gleaner_lease::issuer::Free;
use gleaner_proto::ids::NodeName;

use super::{
    Core, Turn,
    judge::Why,
    node::Node,
    placement::{self, Candidate},
};
use crate::{
    event::Acquire,
    refusal::{Expected, NoRoom, Refusal},
};

/// What a look over all nodes found.
pub(super) struct Survey {
    /// The nodes that fit, in the order in which to use them.
    pub(super) fitting: Vec<NodeName>,
    /// What to say if they are too few.
    pub(super) no_room: NoRoom,
}

/// Why one node does not take a request.
enum Lacks {
    /// Not offered at all: not worth a word.
    Offer,
    /// Not harvested now.
    Harvest(Why),
    /// Something else, completing "2 nodes are …".
    Other(&'static str),
    /// Free cores, but too few.
    Cores(u32),
    /// Free memory, but too little.
    Memory(u64),
}

#[derive(Default)]
struct Tally {
    others: BTreeMap<&'static str, u32>,
    smaller: BTreeMap<u32, u32>,
    short_of_memory: Option<(u32, u64)>,
    next: Option<Expected>,
}

impl Core {
    /// Looks at every node for a request.
    pub(super) fn survey(&self, turn: &Turn<'_>, acquire: &Acquire) -> Survey {
        let avoid: BTreeSet<&NodeName> = acquire.avoid.iter().collect();
        let (mut candidates, mut tally) = (Vec::new(), Tally::default());
        for (name, node) in self.nodes.iter().filter(|(_, node)| within(node, &acquire.partition)) {
            match self.fits(turn, acquire, &avoid, name, node) {
                Ok(candidate) => candidates.push(candidate),
                Err(lacks) => tally.add(lacks, node, acquire.cores, turn.wall_ms),
            }
        }
        let fitting = placement::order(candidates, self.policy.placement);
        let no_room = NoRoom {
            partition: acquire.partition.clone(),
            cores: acquire.cores,
            memory_bytes: acquire.memory_bytes,
            nodes_min: acquire.nodes_min,
            fitting: u32::try_from(fitting.len()).unwrap_or(u32::MAX),
            smaller: tally.smaller.into_iter().rev().map(|(cores, nodes)| (nodes, cores)).collect(),
            short_of_memory: tally.short_of_memory,
            others: tally.others.into_iter().map(|(why, nodes)| (nodes, why)).collect(),
            next: tally.next,
        };
        Survey { fitting, no_room }
    }

    fn fits(
        &self,
        turn: &Turn<'_>,
        acquire: &Acquire,
        avoid: &BTreeSet<&NodeName>,
        name: &NodeName,
        node: &Node,
    ) -> Result<Candidate, Lacks> {
        self.judge(turn.now, turn.wall_ms, name, node).map_err(|why| match why {
            Why::NotOffered | Why::Unknown => Lacks::Offer,
            why => Lacks::Harvest(why),
        })?;
        if avoid.contains(name) {
            return Err(Lacks::Other("on this request's list of nodes to avoid"));
        }
        let executor = node.executor.as_ref().filter(|executor| executor.conn.is_some());
        let executor = executor.ok_or(Lacks::Other("idle without an executor"))?;
        if !executor.serves(acquire.who.uid) {
            return Err(Lacks::Other("served for another user alone"));
        }
        let Free { cores, memory_bytes } =
            self.issuer.free(name).ok_or(Lacks::Other("idle and about to be granted"))?;
        match cores {
            0 => Err(Lacks::Other("leased out")),
            _ if cores < acquire.cores => Err(Lacks::Cores(cores)),
            _ if memory_bytes < acquire.memory_bytes => Err(Lacks::Memory(memory_bytes)),
            free_cores => Ok(Candidate {
                name: name.clone(),
                free_cores,
                leased: self.book.on_node(name).next().is_some(),
                idle_until_s: node.planned_s(),
            }),
        }
    }

    /// Whether the site offers any node of this partition.
    pub(super) fn offered(&self, partition: &str) -> Result<(), Refusal> {
        let mut nodes = self.nodes.values().filter(|node| within(node, partition));
        if nodes.any(|node| node.opted_in) {
            return Ok(());
        }
        let known: BTreeSet<&str> = self
            .nodes
            .values()
            .filter_map(|node| node.view.as_ref())
            .flat_map(|view| view.partitions.iter().map(String::as_str))
            .collect();
        if !partition.is_empty() && !known.contains(partition) {
            let known = known.into_iter().collect::<Vec<_>>().join(", ");
            return Err(Refusal::UnknownPartition { name: partition.into(), known });
        }
        let place = match partition {
            "" => "of the cluster".to_owned(),
            name => format!("in partition {name}"),
        };
        Err(Refusal::NotOffered { place, offered: self.policy.offer() })
    }

    /// How many nodes would be granted if the policy enforced.
    pub(super) fn would_grant(&self, turn: &Turn<'_>, partition: &str) -> u32 {
        let would = |name: &NodeName, node: &Node| {
            within(node, partition) && self.grantable(turn.now, turn.wall_ms, name, node).is_ok()
        };
        let count = self.nodes.iter().filter(|(name, node)| would(name, node)).count();
        u32::try_from(count).unwrap_or(u32::MAX)
    }
}

impl Tally {
    fn add(&mut self, lacks: Lacks, node: &Node, cores: u32, wall_ms: i64) {
        match lacks {
            Lacks::Offer => {}
            Lacks::Harvest(why) => {
                *self.others.entry(why.predicate()).or_default() += 1;
                self.expect(node, cores, wall_ms);
            }
            Lacks::Other(why) => *self.others.entry(why).or_default() += 1,
            Lacks::Cores(free) => *self.smaller.entry(free).or_default() += 1,
            Lacks::Memory(free) => {
                let (nodes, most) = self.short_of_memory.unwrap_or_default();
                self.short_of_memory = Some((nodes + 1, most.max(free)));
            }
        }
    }

    /// When a node that is large enough is idle again, by its jobs' time limits.
    fn expect(&mut self, node: &Node, cores: u32, wall_ms: i64) {
        let large = node.view.as_ref().is_some_and(|view| view.cpus >= cores);
        let idle_at = node.plan.idle_at.filter(|at| {
            large && !node.plan.unlimited && at.unix_s.saturating_mul(1000) >= wall_ms
        });
        let sooner = |at: &Expected| self.next.is_none_or(|next| at.unix_s < next.unix_s);
        self.next = idle_at.filter(sooner).or(self.next);
    }
}

/// Whether the node is of this partition; empty: any.
fn within(node: &Node, partition: &str) -> bool {
    let view = node.view.as_ref();
    view.is_some_and(|view| {
        partition.is_empty() || view.partitions.iter().any(|name| name == partition)
    })
}
