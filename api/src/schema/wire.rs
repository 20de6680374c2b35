//! A type as protobuf has it: its fields in the order of their numbers, inlined messages in their places.

use super::Field;

/// The fields of a message in the order of their numbers.
#[derive(Debug, Default)]
pub struct Message {
    slots: Box<[Slot]>,
}

/// One field of a message.
#[derive(Debug)]
pub struct Slot {
    pub number: u16,
    pub what: What,
}

#[derive(Debug)]
pub enum What {
    /// The place of the field in its object type.
    Field(usize),
    /// A message whose fields stand beside the others in JSON.
    Inlined(Message),
}

impl Message {
    pub(super) fn of(fields: &[Field]) -> Message {
        let tagged = fields.iter().enumerate().filter(|(_, field)| !field.tag.is_empty());
        Message::at_depth(&tagged.map(|(at, field)| (at, &*field.tag)).collect::<Vec<_>>())
    }

    /// Of fields with what is left of their numbers.
    fn at_depth(fields: &[(usize, &[u16])]) -> Message {
        let mut numbers: Vec<u16> = fields.iter().filter_map(|(_, tag)| tag.first().copied()).collect();
        numbers.sort_unstable();
        numbers.dedup();
        let slot = |number: u16| {
            let within: Vec<(usize, &[u16])> = fields
                .iter()
                .filter(|(_, tag)| tag.first() == Some(&number))
                .map(|(at, tag)| (*at, &tag[1..]))
                .collect();
            let what = match within.as_slice() {
                [(at, [])] => What::Field(*at),
                inlined => What::Inlined(Message::at_depth(inlined)),
            };
            Slot { number, what }
        };
        Message { slots: numbers.into_iter().map(slot).collect() }
    }

    pub fn slots(&self) -> &[Slot] {
        &self.slots
    }

    pub fn slot(&self, number: u64) -> Option<&What> {
        let at = self.slots.binary_search_by(|slot| u64::from(slot.number).cmp(&number)).ok()?;
        Some(&self.slots[at].what)
    }
}
