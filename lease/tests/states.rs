//! The life cycle's table, whole: a change of any arrow shows here.

use gleaner_lease::state::{EVENTS, EndReason, Event, STATES, State};

#[test]
fn every_state_and_event() {
    let mut table = String::new();
    for state in STATES {
        for event in EVENTS {
            let to = state.after(event).map_or("refused".to_owned(), |to| to.to_string());
            table += &format!("{state:>8} + {event:<7} = {to}\n");
        }
    }
    insta::assert_snapshot!("every_state_and_event", table);
}

#[test]
fn what_has_ended_never_comes_back_and_what_runs_is_never_forgotten() {
    for event in EVENTS {
        assert!(matches!(State::Ended.after(event), Ok(State::Ended) | Err(_)));
        let ends = matches!(event, Event::Gone | Event::Lapse);
        for state in [State::Live, State::Ending] {
            assert_eq!(state.after(event) == Ok(State::Ended), ends, "{state} + {event}");
        }
    }
}

#[test]
fn words_and_numbers_are_read_back() {
    for state in STATES {
        assert_eq!(State::parse(state.as_str()), Some(state));
    }
    for number in 1..=9 {
        assert_eq!(EndReason::from_number(number).map(|reason| reason as i32), Some(number));
    }
    assert_eq!(EndReason::from_number(0), None);
}
