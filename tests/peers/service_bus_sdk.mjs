// Drives a Service Bus namespace with Microsoft's JavaScript SDK and checks every answer.
//
// Usage: node service_bus_sdk.mjs CONNECTION_STRING QUEUE UNIQUE_QUEUE SHORT_LOCK_QUEUE TOPIC SUBSCRIPTION
//
// All queues must be empty. QUEUE gives a message up after 3 deliveries, UNIQUE_QUEUE drops
// duplicates, SHORT_LOCK_QUEUE locks for 2 seconds. PEER_NODE_MODULES names the folder that holds
// the SDK, where it is not beside this file. Prints one line per check and exits with 1 at the
// first that fails.

import assert from "node:assert/strict";
import { createRequire } from "node:module";
import { resolve } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";

const modules = process.env.PEER_NODE_MODULES;
const require = createRequire(modules ? resolve(modules, "peer.cjs") : import.meta.url);
const { ServiceBusClient } = require("@azure/service-bus");
const Long = require("long");

const WAIT = { maxWaitTimeInMs: 5000 };
const SOON = { maxWaitTimeInMs: 500 };
const DELIVERIES = 3;

if (process.argv.length !== 8) {
  console.error("give: connection string, queue, unique queue, short-lock queue, topic, subscription");
  process.exit(2);
}
const [connection, queue, unique, short, topic, subscription] = process.argv.slice(2);
const client = new ServiceBusClient(connection, { retryOptions: { maxRetries: 1 } });
const sender = client.createSender(queue);
const receiver = client.createReceiver(queue);
const deadLetters = client.createReceiver(queue, { subQueueType: "deadLetter" });

async function one(from) {
  const messages = await from.receiveMessages(1, WAIT);
  assert.equal(messages.length, 1, "one message expected");
  return messages[0];
}

async function empty(from) {
  const left = await from.peekMessages(5, { fromSequenceNumber: Long.ZERO });
  assert.deepEqual(left.map((message) => message.body), [], "should be empty");
}

const checks = {
  async "send and complete"() {
    await sender.sendMessages({
      body: { prompt: "hello" },
      messageId: "m-1",
      subject: "greeting",
      contentType: "application/json",
      applicationProperties: { batch: "b1", count: 3 },
    });
    const message = await one(receiver);
    assert.deepEqual(message.body, { prompt: "hello" });
    assert.equal(message.messageId, "m-1");
    assert.equal(message.subject, "greeting");
    assert.deepEqual(message.applicationProperties, { batch: "b1", count: 3 });
    assert.equal(message.deliveryCount, 0);
    assert.ok(message.lockedUntilUtc > new Date());
    assert.ok(Math.abs(message.enqueuedTimeUtc - new Date()) < 10_000);
    await receiver.completeMessage(message);
    await empty(receiver);
  },

  async "batch"() {
    const batch = await sender.createMessageBatch();
    for (let number = 0; number < 250; number += 1) {
      assert.ok(batch.tryAddMessage({ body: `job ${number}`, messageId: `b-${number}` }));
    }
    await sender.sendMessages(batch);
    const seen = [];
    while (seen.length < 250) {
      const messages = await receiver.receiveMessages(100, WAIT);
      assert.ok(messages.length > 0, `only ${seen.length} of 250 came`);
      await Promise.all(messages.map((message) => receiver.completeMessage(message)));
      seen.push(...messages.map((message) => message.body));
    }
    assert.equal(new Set(seen).size, 250);
    await empty(receiver);
  },

  async "abandon"() {
    await sender.sendMessages({ body: "again" });
    for (let delivery = 0; delivery < DELIVERIES; delivery += 1) {
      const message = await one(receiver);
      assert.equal(message.deliveryCount, delivery);
      await receiver.abandonMessage(message, { note: `try ${delivery}` });
    }
    await empty(receiver);
    const message = await one(deadLetters);
    assert.equal(message.deadLetterReason, "MaxDeliveryCountExceeded");
    assert.equal(message.deliveryCount, DELIVERIES);
    assert.equal(message.applicationProperties.note, "try 2");
    await deadLetters.completeMessage(message);
  },

  async "dead letter"() {
    await sender.sendMessages({ body: "bad", applicationProperties: { kept: "yes" } });
    const received = await one(receiver);
    await receiver.deadLetterMessage(received, {
      deadLetterReason: "NoGood",
      deadLetterErrorDescription: "see log",
    });
    await empty(receiver);
    const message = await one(deadLetters);
    assert.equal(message.body, "bad");
    assert.equal(message.deadLetterReason, "NoGood");
    assert.equal(message.deadLetterErrorDescription, "see log");
    assert.equal(message.deadLetterSource, queue);
    assert.equal(message.applicationProperties.kept, "yes");
    await deadLetters.completeMessage(message);
    await empty(deadLetters);
  },

  async "renew"() {
    const slow = client.createReceiver(short, { maxAutoLockRenewalDurationInMs: 0 });
    await client.createSender(short).sendMessages({ body: "slow" });
    const message = await one(slow);
    const before = message.lockedUntilUtc;
    await sleep(1200);
    assert.ok((await slow.renewMessageLock(message)) > before);
    await sleep(1200);
    await slow.completeMessage(message);
    await empty(slow);
  },

  async "lock lost"() {
    const slow = client.createReceiver(short, { maxAutoLockRenewalDurationInMs: 0 });
    await client.createSender(short).sendMessages({ body: "too slow" });
    const message = await one(slow);
    await sleep(2300);
    await assert.rejects(slow.renewMessageLock(message), { code: "MessageLockLost" });
    await assert.rejects(slow.completeMessage(message), { code: "MessageLockLost" });
    const again = await one(slow);
    assert.equal(again.deliveryCount, 1);
    await slow.completeMessage(again);
  },

  async "peek"() {
    await sender.sendMessages([0, 1, 2, 3, 4].map((number) => ({ body: `p${number}` })));
    const peeked = await receiver.peekMessages(3, { fromSequenceNumber: Long.ZERO });
    assert.deepEqual(peeked.map((message) => message.body), ["p0", "p1", "p2"]);
    const rest = await receiver.peekMessages(10);
    assert.deepEqual(rest.map((message) => message.body), ["p3", "p4"]);
    const taker = client.createReceiver(queue, { receiveMode: "receiveAndDelete" });
    const taken = [];
    while (taken.length < 5) {
      const messages = await taker.receiveMessages(5 - taken.length, WAIT);
      assert.ok(messages.length > 0, `only ${taken.length} of 5 came`);
      taken.push(...messages);
    }
    await empty(receiver);
  },

  async "schedule"() {
    const due = new Date(Date.now() + 1500);
    const numbers = await sender.scheduleMessages([{ body: "later" }, { body: "never" }], due);
    assert.equal(numbers.length, 2);
    await sender.cancelScheduledMessages(numbers[1]);
    await assert.rejects(sender.cancelScheduledMessages(numbers[1]));
    assert.deepEqual(await receiver.receiveMessages(1, SOON), []);
    const message = await one(receiver);
    assert.equal(message.body, "later");
    assert.ok(Date.now() >= due.getTime() - 50);
    await receiver.completeMessage(message);
    await empty(receiver);
  },

  async "defer"() {
    await sender.sendMessages({ body: "aside" });
    const message = await one(receiver);
    await receiver.deferMessage(message);
    assert.deepEqual(await receiver.receiveMessages(1, SOON), []);
    const [again] = await receiver.receiveDeferredMessages(message.sequenceNumber);
    assert.equal(again.body, "aside");
    await receiver.completeMessage(again);
    await assert.rejects(receiver.receiveDeferredMessages(message.sequenceNumber));
  },

  async "duplicates"() {
    const once = client.createSender(unique);
    const message = { body: "first", messageId: "js-same" };
    await once.sendMessages([message, message]);
    await once.sendMessages({ ...message, body: "second" });
    const from = client.createReceiver(unique);
    const received = await one(from);
    assert.equal(received.body, "first");
    await from.completeMessage(received);
    await empty(from);
  },

  async "large"() {
    const large = Buffer.alloc(180 * 1024, "prompt ");
    await sender.sendMessages({ body: large });
    const message = await one(receiver);
    assert.ok(large.equals(message.body));
    await receiver.completeMessage(message);
    const tooLarge = sender.sendMessages({ body: Buffer.alloc(300_000) });
    await assert.rejects(tooLarge, { code: "MessageSizeExceeded" });
    await empty(receiver);
  },

  async "topic fans out"() {
    await client.createSender(topic).sendMessages({ body: "news" });
    const from = client.createReceiver(topic, subscription);
    const message = await one(from);
    assert.equal(message.body, "news");
    await from.completeMessage(message);
  },

  async "unknown queue"() {
    const nowhere = client.createReceiver("no-such-queue");
    await assert.rejects(nowhere.receiveMessages(1, SOON), { code: "MessagingEntityNotFound" });
  },
};

try {
  for (const [name, check] of Object.entries(checks)) {
    const started = performance.now();
    try {
      await check();
    } catch (error) {
      console.error(`failed: ${name}`);
      throw error;
    }
    console.log(`ok: ${name} (${((performance.now() - started) / 1000).toFixed(1)} s)`);
  }
  await client.close();
} catch (error) {
  console.error(error);
  process.exit(1);
}
