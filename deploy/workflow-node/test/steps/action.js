export default {
  key: "ping",
  name: "Ping",
  version: "0.0.1",
  type: "action",
  props: {},
  async run({ $ }) {
    $.send.http({
      method: "GET",
      url: "https://receiver.test/",
    });
  },
};
