//! The tests on real parts: see `sluice_tests` for what they stand on. One binary, because each links all of librdkafka.

mod bad_calls;
mod bad_events;
mod contract;
mod crashes;
mod dead_letters;
mod decide;
mod duplicates;
mod examples;
mod flow;
mod options;
mod publish;
mod quotas;
mod rebalance;
mod resume;
mod resume_elsewhere;
mod rules;
mod shutdown;
mod takeover;
mod tenants;
mod tools;
mod traces;
mod traffic;
