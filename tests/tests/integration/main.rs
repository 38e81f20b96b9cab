//! The tests on real parts: see `sluice_tests` for what they stand on. One binary, because each links all of librdkafka.
