//! The tests on real parts: see `sluice_tests` for what they stand on. One binary, because each links all of librdkafka.

mod bad_calls;
mod bad_events;
mod bounds;
mod contract;
mod crashes;
mod credentials;
mod cursors;
mod dead_letters;
mod duplicates;
mod examples;
mod expired;
mod flow;
mod once;
mod options;
mod privacy;
mod publish;
mod rebalance;
mod resume;
mod rules;
mod shutdown;
mod starts;
mod tenants;
mod tools;
mod traces;
mod traffic;
mod web;
