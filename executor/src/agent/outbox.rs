//! Events for the harvester: numbered, kept until acknowledged, sent again after every reconnect.
//!
//! Owned by [`super::node`]. Bounded: when it is full, the oldest renewal goes first (heartbeats tell expiries too), then
//! the oldest event; a vacate that goes stays in the node's journal and is read again after the next start.

use std::collections::BTreeMap;

use gleaner_proto::v1::{FromExecutor, LeaseRenewed, from_executor::Message};

use super::tune::OUTBOX_MAX;

/// Events by number.
#[derive(Debug, Default)]
pub(super) struct Outbox {
    last: u64,
    events: BTreeMap<u64, Message>,
    /// The renewal of each lease that waits: a later one takes its place.
    renewals: BTreeMap<u64, u64>,
}

impl Outbox {
    /// Numbers an event and keeps it.
    pub(super) fn push(&mut self, event: Message) -> FromExecutor {
        if let Message::LeaseRenewed(LeaseRenewed { lease_id, .. }) = event
            && let Some(earlier) = self.renewals.insert(lease_id, self.last + 1)
        {
            self.events.remove(&earlier);
        }
        if self.events.len() >= OUTBOX_MAX {
            self.make_room();
        }
        self.last += 1;
        self.events.insert(self.last, event.clone());
        FromExecutor { event_seq: self.last, message: Some(event) }
    }

    /// The harvester has stored this one.
    pub(super) fn acknowledge(&mut self, seq: u64) -> Option<Message> {
        let event = self.events.remove(&seq)?;
        if let Message::LeaseRenewed(renewed) = &event {
            self.renewals.remove(&renewed.lease_id);
        }
        Some(event)
    }

    /// Everything that is not acknowledged, oldest first.
    pub(super) fn unacknowledged(&self) -> impl Iterator<Item = FromExecutor> + '_ {
        self.events
            .iter()
            .map(|(seq, event)| FromExecutor { event_seq: *seq, message: Some(event.clone()) })
    }

    fn make_room(&mut self) {
        match self.renewals.pop_first() {
            Some((_, seq)) => self.events.remove(&seq).map(drop),
            None => self.events.pop_first().map(drop),
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn renewed(lease_id: u64) -> Message {
        Message::LeaseRenewed(LeaseRenewed { lease_id, expires_stamp_ns: 0 })
    }

    #[test]
    fn events_stay_until_each_is_acknowledged() {
        let mut outbox = Outbox::default();
        let seqs: Vec<u64> =
            (0..3).map(|_| outbox.push(Message::JobEvent(Default::default())).event_seq).collect();
        assert_eq!(seqs, [1, 2, 3]);
        outbox.acknowledge(2);
        let left: Vec<u64> = outbox.unacknowledged().map(|event| event.event_seq).collect();
        assert_eq!(left, [1, 3]);
    }

    #[test]
    fn renewals_of_one_lease_take_one_place_and_leave_first() {
        let mut outbox = Outbox::default();
        outbox.push(Message::JobEvent(Default::default()));
        (0..100).for_each(|_| drop(outbox.push(renewed(7))));
        assert_eq!(outbox.unacknowledged().count(), 2);
        (0..OUTBOX_MAX as u64 * 2).for_each(|lease| drop(outbox.push(renewed(lease))));
        assert_eq!(outbox.events.len(), OUTBOX_MAX);
        assert_eq!(outbox.events.keys().next(), Some(&1), "the job event is still there");
    }
}
